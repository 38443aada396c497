"""Run a migration's `.sql` file as it stands."""

from alembic import op

from outbox_pipeline.postgres.migrations.files import script


def run_file(name: str) -> None:
    """Execute every statement of `sql/<name>` in the migration's transaction.

    Goes to the driver without parameters: colons and percent signs in the file mean themselves.
    """
    op.get_bind().exec_driver_sql(script(name), execution_options={"no_parameters": True})
