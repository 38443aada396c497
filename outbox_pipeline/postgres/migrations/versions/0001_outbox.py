"""The outbox, its ledger, and the triggers that guard them."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create everything the first release needs."""
    run_file("0001_outbox.sql")
