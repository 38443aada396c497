"""The ledger has an identity of its own."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the column for it."""
    run_file("0009_owner.sql")
