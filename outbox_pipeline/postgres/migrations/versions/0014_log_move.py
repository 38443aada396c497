"""The event log can be moved to a new table while events are delivered."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add what a move keeps in the ledger, and the lock that it takes alone at its end."""
    run_file("0014_log_move.sql")
