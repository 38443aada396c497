"""outbox.publish takes jsonb too."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Make the second form of the function and let those call it who may call the first."""
    run_file("0017_publish_jsonb.sql")
