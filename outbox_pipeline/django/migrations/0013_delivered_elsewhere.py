"""Runs 0013_delivered_elsewhere.sql."""

from outbox_pipeline.django.numbered import numbered_migration

Migration = numbered_migration(__name__)
