"""The outbox as Django models that are only read: published events, where each of them is, and quarantine.

Unmanaged: the numbered `.sql` files make the tables, and Django never alters them. Events are written by
`publish_event`, never through these models.

Invariant: `save` and `delete` are refused, so that a mistake fails in Python before PostgreSQL's triggers refuse it.
"""

from typing import Any

from django.db import models

from outbox_pipeline.django.fields import PrintedField, TextListField
from outbox_pipeline.names import shortened


class ReadOnlyModel(models.Model):
    """A table of the outbox."""

    class Meta:
        """No table of its own."""

        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Refuse."""
        raise TypeError("Events are written by outbox_pipeline.django.publish_event, not through models.")

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse."""
        raise TypeError("The outbox is read only here: quarantined events are discarded with 'outbox quarantine'.")


class OutboxEvent(ReadOnlyModel):
    """One published event; `event_context` is its JSON text."""

    position = models.BigIntegerField(primary_key=True)
    event_id = models.UUIDField()
    event_type = models.TextField()
    event_date_time = PrintedField()
    environment = models.TextField()
    event_context = PrintedField()
    metadata_version = models.BigIntegerField()
    recorded_at = models.DateTimeField()
    trace_context = models.TextField(null=True)
    published_by = models.TextField(null=True)

    class Meta:
        """`outbox.event`; quoted by hand, because Django would quote the dot."""

        managed = False
        app_label = "outbox_pipeline"
        db_table = '"outbox"."event"'
        default_permissions = ("view",)
        verbose_name = "event"

    def __str__(self) -> str:
        return f"{shortened(self.event_type)} {self.event_id}"


class EventStatus(ReadOnlyModel):
    """Where one event is: pending, in_flight, parked, processed, held, discarded or replaced."""

    event = models.OneToOneField(
        OutboxEvent, models.DO_NOTHING, primary_key=True, db_column="position", related_name="state"
    )
    status = models.TextField()
    batch_id = models.UUIDField(null=True)
    processed_at = models.DateTimeField(null=True)
    run_id = models.TextField(null=True)
    reasons = TextListField(null=True)

    class Meta:
        """The view `outbox.event_status`."""

        managed = False
        app_label = "outbox_pipeline"
        db_table = '"outbox"."event_status"'
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.status)


class QuarantinedEvent(ReadOnlyModel):
    """One refusal of an event by validation, with all its reasons."""

    quarantine_id = models.BigIntegerField(primary_key=True)
    position = models.BigIntegerField()
    event_id = models.UUIDField()
    event_type = models.TextField()
    batch_id = models.UUIDField()
    reasons = TextListField()
    status = models.TextField()
    quarantined_at = models.DateTimeField()
    resolved_at = models.DateTimeField(null=True)
    note = models.TextField(null=True)
    replaced_by = models.UUIDField(null=True)

    class Meta:
        """`outbox.quarantined_event`."""

        managed = False
        app_label = "outbox_pipeline"
        db_table = '"outbox"."quarantined_event"'
        default_permissions = ("view",)
        verbose_name = "quarantined event"

    def __str__(self) -> str:
        return f"{shortened(self.event_type)} {self.event_id}"
