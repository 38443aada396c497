"""Runs 0001_outbox.sql, and tells Django of the models that read its tables."""

from django.db import migrations, models

from outbox_pipeline.django.fields import PrintedField, TextListField
from outbox_pipeline.django.numbered import numbered_migration

Migration = numbered_migration(
    __name__,
    migrations.CreateModel(
        "OutboxEvent",
        fields=[
            ("position", models.BigIntegerField(primary_key=True, serialize=False)),
            ("event_id", models.UUIDField()),
            ("event_type", models.TextField()),
            ("event_date_time", PrintedField()),
            ("environment", models.TextField()),
            ("event_context", PrintedField()),
            ("metadata_version", models.BigIntegerField()),
            ("recorded_at", models.DateTimeField()),
            ("trace_context", models.TextField(null=True)),
        ],
        options={
            "managed": False,
            "db_table": '"outbox"."event"',
            "default_permissions": ("view",),
            "verbose_name": "event",
        },
    ),
    migrations.CreateModel(
        "EventStatus",
        fields=[
            (
                "event",
                models.OneToOneField(
                    "outbox_pipeline.outboxevent",
                    models.DO_NOTHING,
                    primary_key=True,
                    db_column="position",
                    related_name="state",
                    serialize=False,
                ),
            ),
            ("status", models.TextField()),
            ("batch_id", models.UUIDField(null=True)),
            ("processed_at", models.DateTimeField(null=True)),
            ("run_id", models.TextField(null=True)),
            ("reasons", TextListField(null=True)),
        ],
        options={"managed": False, "db_table": '"outbox"."event_status"', "default_permissions": ()},
    ),
    migrations.CreateModel(
        "QuarantinedEvent",
        fields=[
            ("quarantine_id", models.BigIntegerField(primary_key=True, serialize=False)),
            ("position", models.BigIntegerField()),
            ("event_id", models.UUIDField()),
            ("event_type", models.TextField()),
            ("batch_id", models.UUIDField()),
            ("reasons", TextListField()),
            ("status", models.TextField()),
            ("quarantined_at", models.DateTimeField()),
            ("resolved_at", models.DateTimeField(null=True)),
            ("note", models.TextField(null=True)),
        ],
        options={
            "managed": False,
            "db_table": '"outbox"."quarantined_event"',
            "default_permissions": ("view",),
            "verbose_name": "quarantined event",
        },
    ),
)
