"""A batch knows when it was last proved and pruned, and which of its failures were a server's trouble."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns, and call processed batches proved when they were marked."""
    run_file("0003_proved_and_pruned.sql")
