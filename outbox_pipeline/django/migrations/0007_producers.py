"""Runs 0007_producers.sql, and tells Django of the column that says who wrote an event."""

from django.db import migrations, models

from outbox_pipeline.django.numbered import numbered_migration

Migration = numbered_migration(
    __name__, migrations.AddField("outboxevent", "published_by", models.TextField(null=True))
)
