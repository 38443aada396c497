"""A batch keeps that ClickHouse answered its insert with an error."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the generation that was answered so, and whether it may be sent once more."""
    run_file("0011_answers.sql")
