"""Runs 0003_proved_and_pruned.sql."""

from outbox_pipeline.django.numbered import numbered_migration

Migration = numbered_migration(__name__)
