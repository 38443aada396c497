"""A batch that ClickHouse lacks the memory for is split; a server's trouble has a beginning."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add what a split batch leaves, and since when a server in trouble has held a batch up."""
    run_file("0012_split.sql")
