"""Create and migrate the outbox schema, and know whether it fits this code.

Alembic keeps the order and the version; each step is a numbered `.sql` file that other migration tools can run as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import DBAPIError

from outbox_pipeline.errors import ConfigurationError, TransientError
from outbox_pipeline.postgres.engine import begin_session, ledger_transaction
from outbox_pipeline.postgres.errors import translated
from outbox_pipeline.postgres.migrations.files import (
    DEADLOCK_DETECTED,
    LOCK_HOLDERS,
    LOCK_KEY,
    LOCK_NOT_AVAILABLE,
    LOCK_SECONDS,
    VERSION_TABLE,
    known_versions,
    require_not_newer,
    versions_run_on,
    waited_sentence,
)
from outbox_pipeline.postgres.migrations.rights import READ_RIGHTS, Rights
from outbox_pipeline.postgres.session import session_settings
from outbox_pipeline.postgres.tables import SCHEMA

_MIGRATIONS = Path(__file__).parent / "migrations"

#: So often a migration is begun before a deadlock ends it for good.
_TRIES = 5


def migrate(engine: Engine, *, lock_seconds: float = LOCK_SECONDS) -> str:
    """Bring the schema to this code's version and return the version it has then.

    The next release's version is left as it is. Safe to repeat and to run from several processes at once. Raises
    ConfigurationError when the database is newer than that, too old a server, or the role lacks a right,
    TransientError when another session holds a lock for longer than *lock_seconds*.

    Sessions at work may wait for a table that a migration has while it waits for one of theirs. PostgreSQL then ends
    one of both with nothing done; a migration begins anew.
    """
    with translated(engine), _naming_holders(engine):
        for _ in range(_TRIES - 1):
            with _in_a_deadlock_again():
                return _migrate(engine, lock_seconds)
        return _migrate(engine, lock_seconds)


def _migrate(engine: Engine, lock_seconds: float) -> str:
    with engine.begin() as connection:
        # A step may take as long as the table is large.
        begin_session(connection, session_settings(lock_timeout_seconds=lock_seconds, statement_timeout_seconds=0))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        _require_server(connection)
        return _bring_up_to_date(connection)


def _bring_up_to_date(connection: Connection) -> str:
    rights = Rights(*connection.execute(text(READ_RIGHTS)).one())
    found = schema_version(connection) if rights.may_read_version else None
    if found is not None:
        require_not_newer(found)
        if found in versions_run_on():
            return found
    problem = rights.problem()
    if problem is not None:
        raise ConfigurationError(problem)
    if rights.schema_owner is None:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    _upgrade(connection)
    return latest_version()


def missing_roles(engine: Engine) -> list[str]:
    """Return the group roles that the migrations could not create, because their role may not create any."""
    with ledger_transaction(engine) as connection:
        names = ["outbox_producer", "outbox_pipeline"]
        return [name for name in names if connection.scalar(select(func.to_regrole(name))) is None]


def check_version(connection: Connection) -> str:
    """Return the schema's version; raise ConfigurationError unless this code runs on it."""
    found, supported = schema_version(connection), versions_run_on()
    if found is None:
        raise ConfigurationError("The database has no outbox schema yet: run 'outbox init'.")
    require_not_newer(found)
    if found not in supported:
        raise ConfigurationError(
            f"The outbox schema has version {found}, this code needs {supported[0]}: run 'outbox init' to migrate it."
        )
    return found


def schema_version(connection: Connection) -> str | None:
    """Return the version the database has, None when there is no outbox schema."""
    exists = connection.scalar(text("SELECT to_regclass(:name)"), {"name": f"{SCHEMA}.{VERSION_TABLE}"})
    if exists is None:
        return None
    version: str | None = connection.scalar(text(f"SELECT max(version_num) FROM {SCHEMA}.{VERSION_TABLE}"))  # noqa: S608 - constants
    return version


def latest_version() -> str:
    """Return the version this code migrates to: the number of its last migration."""
    return known_versions()[-1]


@contextmanager
def _in_a_deadlock_again() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != DEADLOCK_DETECTED:
            raise


@contextmanager
def _naming_holders(engine: Engine) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        with engine.connect() as connection:
            holders = connection.execute(text(LOCK_HOLDERS)).all()
        raise TransientError(waited_sentence([tuple(row) for row in holders])) from None


def _upgrade(connection: Connection) -> None:
    # Imported here because only a migration needs it, and every sensor tick loads this module.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _require_server(connection: Connection) -> None:
    version = connection.scalar(text("SELECT current_setting('server_version_num')::integer")) or 0
    if version < 150000:
        raise ConfigurationError(f"PostgreSQL {version // 10000} is too old: the ledger needs version 15 or later.")
