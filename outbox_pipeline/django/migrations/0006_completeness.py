"""Runs 0006_completeness.sql, and tells Django of the column that names an event's replacement."""

from django.db import migrations, models

from outbox_pipeline.django.numbered import numbered_migration

Migration = numbered_migration(
    __name__, migrations.AddField("quarantinedevent", "replaced_by", models.UUIDField(null=True))
)
