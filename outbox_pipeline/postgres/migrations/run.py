"""Run a migration's `.sql` file as it stands."""

from importlib.resources import files

from alembic import op


def run_file(name: str) -> None:
    """Execute every statement of `sql/<name>` in the migration's transaction.

    Goes to the driver's cursor without parameters: colons and percent signs in the file mean themselves.
    """
    script = files("outbox_pipeline.postgres.migrations").joinpath("sql", name).read_text(encoding="utf-8")
    with op.get_bind().connection.cursor() as cursor:
        cursor.execute(script)
