"""A pruned batch stays processed, and what may be pruned has an index of its own."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the constraints, the indexes and the column for discarded events."""
    run_file("0004_retention.sql")
