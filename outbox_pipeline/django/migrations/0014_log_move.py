"""Runs 0014_log_move.sql."""

from outbox_pipeline.django.numbered import numbered_migration

Migration = numbered_migration(__name__)
