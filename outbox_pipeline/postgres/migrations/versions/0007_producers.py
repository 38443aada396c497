"""What a producer may write is bounded, and who wrote an event is noted."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the limits and the column for the writer."""
    run_file("0007_producers.sql")
