"""Tests of outbox-pipeline."""
