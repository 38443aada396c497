"""The ledger keeps its first day."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Add the day and take it from the earliest batch, if there is one."""
    run_file("0016_first_day.sql")
