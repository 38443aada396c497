"""Run a migration's `.sql` file as it stands."""

from alembic import op

from outbox_pipeline.postgres.migrations.files import script


def run_file(name: str) -> None:
    """Execute every statement of `sql/<name>` in the migration's transaction.

    Goes to the driver's cursor without parameters: colons and percent signs in the file mean themselves.
    """
    op.get_bind().connection.cursor().execute(script(name))
