"""Runs 0016_first_day.sql."""

from outbox_pipeline.django.numbered import numbered_migration

Migration = numbered_migration(__name__)
