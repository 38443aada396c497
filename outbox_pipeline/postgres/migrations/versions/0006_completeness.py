"""The ledger knows up to when its events are complete, and which event replaced a quarantined one."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the watermark and the link to the replacement."""
    run_file("0006_completeness.sql")
