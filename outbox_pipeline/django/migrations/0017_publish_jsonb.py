"""Runs 0017_publish_jsonb.sql."""

from outbox_pipeline.django.numbered import numbered_migration

Migration = numbered_migration(__name__)
