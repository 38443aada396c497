"""How long a lease or a wait lasts at most is kept beside its end."""

from outbox_pipeline.postgres.migrations.run import run_file

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column for it."""
    run_file("0008_clock.sql")
