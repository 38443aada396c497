"""Roles for producers and the pipeline, and triggers that publish what happens to a table."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Let applications publish, and the pipeline deliver, with no more rights than that takes."""
    run_file("0005_roles_and_capture.sql")
