"""A batch knows which rows under its id in ClickHouse are another life's."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Let adopted batches name the rows they do not answer for."""
    run_file("0002_foreign_positions.sql")
