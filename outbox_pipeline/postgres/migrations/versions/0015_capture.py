"""A captured table gets no parent; capturing it again heals its triggers."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Replace the function that captures a table."""
    run_file("0015_capture.sql")
