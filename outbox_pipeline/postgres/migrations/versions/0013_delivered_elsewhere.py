"""Ids of events that another instance delivered are kept, so that their repetitions are held."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the table of what other instances delivered."""
    run_file("0013_delivered_elsewhere.sql")
