"""Each batch has a number, under which ClickHouse is a witness of the ledger."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the number, and what the ledger must know of all of them."""
    run_file("0010_witness.sql")
