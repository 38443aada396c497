"""Admin pages for events and quarantine: to look at, never to change.

Users who may view events (`outbox_pipeline.view_outboxevent`) see their contexts.

Invariant: what a page costs does not grow with the outbox. A list shows the newest 10,000 rows at most, filters and
counts only among them, and an older event is found by its id.
"""

from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast, Left
from django.urls import reverse
from django.utils.html import format_html

from outbox_pipeline.django.models import OutboxEvent, QuarantinedEvent
from outbox_pipeline.names import MAX_BYTES, shortened

#: How many rows a list reaches back.
NEWEST = 10_000
#: How much of a context the page of an event shows.
SHOWN_CHARACTERS = 100_000
_TYPES_LIMIT = 200


def newest(rows: QuerySet) -> QuerySet:
    """Return those among *rows* that belong to the newest of their table."""
    by_age = rows.model._default_manager.using(rows.db).order_by("-pk").values_list("pk", flat=True)
    edge = by_age[NEWEST - 1 : NEWEST].first()
    return rows if edge is None else rows.filter(pk__gte=edge)


class NewestChangeList(ChangeList):
    """A list of the newest rows; a search reaches all."""

    def get_queryset(self, *args: Any, **kwargs: Any) -> QuerySet:
        """Return the rows of the list."""
        rows = super().get_queryset(*args, **kwargs)
        return rows if self.query else newest(rows)


class TypeFilter(admin.SimpleListFilter):
    """The event types among the newest rows."""

    title = "type"
    parameter_name = "type"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        """Return the types, without those that are too long for an address."""
        types = newest(model_admin.get_queryset(request)).order_by("event_type").values_list("event_type", flat=True)
        fitting = [name for name in types.distinct()[:_TYPES_LIMIT] if len(name) <= MAX_BYTES["event_type"]]
        return [(name, shortened(name)) for name in fitting]

    def queryset(self, request: Any, queryset: QuerySet) -> QuerySet:
        """Return the rows of the type that was chosen."""
        return queryset if self.value() is None else queryset.filter(event_type=self.value())


class StatusFilter(admin.SimpleListFilter):
    """Where an event is."""

    title = "status"
    parameter_name = "status"
    statuses: tuple[str, ...] = ("pending", "in_flight", "parked", "processed", "held", "discarded", "replaced")
    field = "state__status"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        """Return the statuses."""
        return [(name, name.replace("_", " ")) for name in self.statuses]

    def queryset(self, request: Any, queryset: QuerySet) -> QuerySet:
        """Return the rows with the status that was chosen."""
        return queryset if self.value() is None else queryset.filter(**{self.field: self.value()})


class QuarantineStatusFilter(StatusFilter):
    """What became of a refused event."""

    statuses = ("held", "requeued", "discarded", "replaced")
    field = "status"


class ReadOnlyAdmin(admin.ModelAdmin):
    """Pages without any button that changes something."""

    actions = None
    sortable_by = ()
    ordering = ("-pk",)
    show_full_result_count = False
    search_fields = ("event_id",)
    search_help_text = "The whole event_id. Without it the list shows the newest 10,000."

    @admin.display(description="event type")
    def shown_type(self, row: Any) -> str:
        """Return the event's type, of a long one the beginning."""
        return shortened(row.event_type)

    def has_add_permission(self, request: Any, obj: Any = None) -> bool:
        """Adding is refused."""
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        """Changing is refused."""
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        """Deleting is refused."""
        return False

    def get_changelist(self, request: Any, **kwargs: Any) -> type[ChangeList]:
        """Return the bounded list."""
        return NewestChangeList

    def get_search_results(self, request: Any, queryset: QuerySet, search_term: str) -> tuple[QuerySet, bool]:
        """Return the rows of the event with the id searched for; no other word is searched, that would read all."""
        if not search_term:
            return queryset, False
        try:
            event_id = UUID(search_term.strip())
        except ValueError:
            return queryset.none(), False
        return queryset.filter(event_id=event_id), False


@admin.register(OutboxEvent)
class OutboxEventAdmin(ReadOnlyAdmin):
    """Published events, newest first."""

    list_display = (
        *("event_id", "shown_type", "shown_environment", "metadata_version", "recorded_at", "status", "position"),
    )
    list_filter = (StatusFilter, TypeFilter)
    list_select_related = ("state",)
    fields = (
        *("event_id", "event_type", "metadata_version", "environment", "event_date_time", "recorded_at", "position"),
        *("status", "reasons", "batch_id", "processed_at", "run_id", "published_by", "trace_context", "context"),
    )
    readonly_fields = fields

    def get_queryset(self, request: Any) -> QuerySet:
        """Return events without their contexts, which may be large."""
        return super().get_queryset(request).select_related("state").defer("event_context")

    @admin.display(description="environment")
    def shown_environment(self, event: OutboxEvent) -> str:
        """Return the event's environment, of a long one the beginning."""
        return shortened(event.environment)

    def status(self, event: OutboxEvent) -> str:
        """Return where the event is."""
        return str(event.state.status)

    def batch_id(self, event: OutboxEvent) -> Any:
        """Return the batch the event belongs to."""
        return event.state.batch_id

    def processed_at(self, event: OutboxEvent) -> Any:
        """Return when the batch was proved and marked."""
        return event.state.processed_at

    def run_id(self, event: OutboxEvent) -> Any:
        """Return the run that delivered the event, or tries to."""
        return event.state.run_id

    def reasons(self, event: OutboxEvent) -> str:
        """Return why the event is in quarantine."""
        return _lines(event.state.reasons)

    def context(self, event: OutboxEvent) -> Any:
        """Return the context as it was published, of a large one the beginning."""
        text = Left(Cast("event_context", TextField()), SHOWN_CHARACTERS)
        shown = OutboxEvent._default_manager.filter(pk=event.pk).values_list(text, flat=True).get()
        return format_html('<pre style="white-space: pre-wrap">{}</pre>', shown)


@admin.register(QuarantinedEvent)
class QuarantinedEventAdmin(ReadOnlyAdmin):
    """Events that validation refused, newest first."""

    list_display = ("event_id", "shown_type", "why", "status", "quarantined_at", "resolved_at")
    list_filter = (QuarantineStatusFilter, TypeFilter)
    fields = (
        *("event_id", "event_type", "why", "status", "quarantined_at", "resolved_at", "note"),
        *("replaced_by", "batch_id", "position", "event"),
    )
    readonly_fields = fields

    def why(self, row: QuarantinedEvent) -> str:
        """Return all reasons."""
        return _lines(row.reasons)

    def event(self, row: QuarantinedEvent) -> Any:
        """Return a link to the event, or its id alone once its row was pruned."""
        if not OutboxEvent._default_manager.filter(pk=row.position, event_id=row.event_id).exists():
            return f"{row.event_id} (its row was pruned)"
        return format_html(
            '<a href="{}">{}</a>',
            reverse("admin:outbox_pipeline_outboxevent_change", args=[row.position]),
            row.event_id,
        )


def _lines(reasons: list[str] | None) -> str:
    return "\n".join(reasons or [])
