"""Django migrations that run the numbered `.sql` files, in step with `outbox init`.

Invariant: whichever of the two comes first, each file runs once. Both read and write `outbox.schema_version` under the
same lock, so a database that one has migrated is nothing new to the other. The next release's version is left as it is.

They do nothing on a database that is not PostgreSQL, as `django.contrib.postgres` does, and cannot be reversed: that
would take the events.
"""

from collections.abc import Iterable
from typing import Any

from django.db import DatabaseError, migrations, router, transaction
from django.db.migrations.operations.base import Operation

from outbox_pipeline.errors import ConfigurationError, OutboxError, TransientError, without_secrets
from outbox_pipeline.postgres.migrations.files import (
    LIMIT_WAITS,
    LOCK_HOLDERS,
    LOCK_KEY,
    LOCK_NOT_AVAILABLE,
    LOCK_SECONDS,
    VERSION_TABLE,
    file_names,
    require_not_newer,
    script,
    waited_sentence,
)
from outbox_pipeline.postgres.migrations.rights import READ_RIGHTS, Rights
from outbox_pipeline.postgres.sqlstates import answered, state_of

#: As Alembic makes it.
_VERSION_TABLE = f"""
CREATE TABLE outbox.{VERSION_TABLE} (
    version_num varchar(32) NOT NULL CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY
)
"""
_VERSION = f"SELECT max(version_num) FROM outbox.{VERSION_TABLE}"  # noqa: S608 - a constant
_FIRST_VERSION = f"INSERT INTO outbox.{VERSION_TABLE} (version_num) VALUES (%s)"  # noqa: S608 - a constant
_NEXT_VERSION = f"UPDATE outbox.{VERSION_TABLE} SET version_num = %s"  # noqa: S608 - a constant


def numbered_migration(module_name: str, *state: Operation) -> type[migrations.Migration]:
    """Return the migration that runs the `.sql` file which *module_name* is called after, after the one before it.

    *state* are operations that tell Django of unmanaged models.
    """
    names = [name.removesuffix(".sql") for name in file_names()]
    own = module_name.rpartition(".")[2]
    before = names[: names.index(own)][-1:]
    body = {
        "__module__": module_name,
        "dependencies": [("outbox_pipeline", name) for name in before],
        "operations": [RunNumbered(own), *state],
    }
    return type("Migration", (migrations.Migration,), body)


class RunNumbered(Operation):
    """Run one numbered file unless the database's version says that it ran."""

    reduces_to_sql = True
    reversible = False

    def __init__(self, name: str) -> None:
        self.name = name

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing: the tables are no managed models."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Run the file and note its number, in the migration's transaction."""
        connection = schema_editor.connection
        if connection.vendor != "postgresql" or not self.allow_migrate(connection.alias, app_label):
            return
        if schema_editor.collect_sql:
            schema_editor.execute(script(f"{self.name}.sql"), params=None)
            return
        _run_files(connection, [self.name])

    def allow_migrate(self, alias: str, app_label: str) -> bool:
        """Tell whether the database routers let this app into the database *alias*."""
        return bool(router.allow_migrate(alias, app_label))

    def describe(self) -> str:
        """Return what `migrate --plan` shows."""
        return f"Runs {self.name}.sql of the outbox schema"

    @property
    def migration_name_fragment(self) -> str:
        """Return the end of a migration's name."""
        return self.name.partition("_")[2]


def make_schema(connection: Any) -> None:
    """Run each file that the database has not run yet, in one transaction, where Django runs no migrations for it.

    A schema of another role is left to that role, which migrates it with `outbox init`.
    """
    with transaction.atomic(using=connection.alias):
        rights = _rights(connection)
        if rights.tables_owner is not None and not rights.is_tables_owner:
            return
        _run_files(connection, [name.removesuffix(".sql") for name in file_names()])


def _rights(connection: Any) -> Rights:
    with connection.cursor() as cursor:
        cursor.execute(READ_RIGHTS)
        return Rights(*cursor.fetchone())


def _run_files(connection: Any, names: Iterable[str]) -> None:
    try:
        with connection.cursor() as cursor:
            for name in names:
                _run(cursor, name)
    except DatabaseError as error:
        if not state_of(error.__cause__):
            raise
        raise _answer(error.__cause__, connection) from None


def _run(cursor: Any, name: str) -> None:
    number = name.partition("_")[0]
    cursor.execute(LIMIT_WAITS.format(limit="%s"), [f"{LOCK_SECONDS * 1000:.0f}ms"])
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK_KEY])
    _require_server(cursor)
    cursor.execute(READ_RIGHTS)
    rights = Rights(*cursor.fetchone())
    found = _version(cursor) if rights.may_read_version else None
    if found is not None:
        require_not_newer(found)
        if found >= number:
            return
    _make_room(cursor, rights)
    # Without parameters: percent signs in the file mean themselves.
    cursor.execute(script(f"{name}.sql"))
    cursor.execute(_FIRST_VERSION if found is None else _NEXT_VERSION, [number])


def _answer(cause: Any, connection: Any) -> OutboxError:
    state = state_of(cause)
    if state == LOCK_NOT_AVAILABLE:
        return TransientError(waited_sentence(_holders(connection)))
    said = without_secrets(getattr(cause.diag, "message_primary", None) or "")
    return answered(f"The database {connection.alias!r}", state, name=type(cause).__name__, said=said)


def _version(cursor: Any) -> str | None:
    cursor.execute(_VERSION)
    version: str | None = cursor.fetchone()[0]
    return version


def _make_room(cursor: Any, rights: Rights) -> None:
    """Create the schema and its table of versions where they are missing."""
    problem = rights.problem()
    if problem is not None:
        raise ConfigurationError(problem)
    if rights.schema_owner is None:
        cursor.execute("CREATE SCHEMA outbox")
    if rights.tables_owner is None:
        cursor.execute(_VERSION_TABLE)


def _holders(connection: Any) -> list[tuple[int, str, str]]:
    # The migration's transaction has failed, and its connection answers nothing until that is over.
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute(LOCK_HOLDERS)
            found: list[tuple[int, str, str]] = cursor.fetchall()
            return found
    finally:
        other.close()


def _require_server(cursor: Any) -> None:
    cursor.execute("SELECT current_setting('server_version_num')::integer / 10000")
    version = cursor.fetchone()[0]
    if version < 15:
        raise ConfigurationError(f"PostgreSQL {version} is too old: the outbox needs version 15 or later.")
