"""Connections to PostgreSQL and the one way to open a ledger transaction.

Invariant: every ledger transaction is READ COMMITTED and read write, and its first statement sets all that `session.py`
lists, whatever the role, the database or the URL default to. Under REPEATABLE READ a late commit would be forgotten.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from outbox_pipeline.errors import ConfigurationError, LedgerError, TransientError
from outbox_pipeline.postgres import watchdog
from outbox_pipeline.postgres.conninfo import connect_arguments, read_url
from outbox_pipeline.postgres.errors import translated
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.session import IDLE_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_SECONDS, session_settings
from outbox_pipeline.postgres.sqlstates import state_of
from outbox_pipeline.settings import Settings

if TYPE_CHECKING:
    import psycopg

#: Psycopg's own default: a statement is prepared when it is sent for the sixth time over one connection.
PREPARE_THRESHOLD = 5


def create_outbox_engine(settings: Settings, *, pooled: bool = True) -> Engine:
    """Return an engine on the outbox database.

    Raises ConfigurationError when OUTBOX_POSTGRES_URL is not set. Connects nowhere yet.
    """
    if settings.postgres_url is None:
        raise ConfigurationError(
            "OUTBOX_POSTGRES_URL is not set: set it, or start the embedded engines with 'outbox up'."
        )
    url = read_url(settings.postgres_url.get_secret_value())
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        connect_args={**connect_arguments(url), "prepare_threshold": None},
        hide_parameters=True,
        **({"pool_pre_ping": True, "pool_size": 4} if pooled else {"poolclass": NullPool}),
    )
    event.listen(engine, "connect", _begin_read_write)
    if pooled:
        event.listen(engine, "connect", _prepare_where_direct)
    watchdog.watch(engine)
    return engine


def _begin_read_write(connection: "psycopg.Connection[Any]", _record: object) -> None:
    # psycopg writes it into BEGIN, beside the isolation; a role, a database or a server may default to read only.
    connection.read_only = False


def _prepare_where_direct(connection: "psycopg.Connection[Any]", _record: object) -> None:
    # Prepared, a look at the outbox takes half as long. Behind a pooler the next transaction may find other statements
    # under the names that psycopg gave to its own; there another process answered the login than runs the statements.
    connection.autocommit = True
    (backend_pid,) = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone() or (None,)
    connection.autocommit = False
    if backend_pid == connection.info.backend_pid:
        connection.prepare_threshold = PREPARE_THRESHOLD


@contextmanager
def ledger_transaction(
    engine: Engine,
    *,
    lock_timeout_seconds: float = 5,
    idle_seconds: float = IDLE_TIMEOUT_SECONDS,
    statement_timeout_seconds: float = STATEMENT_TIMEOUT_SECONDS,
) -> Iterator[Connection]:
    """Open a transaction with what the ledger's correctness rests on, commit it at the end, translate what fails.

    Between its statements the block may be busy with other things for *idle_seconds*, 0 for as long as it likes; then
    the server ends the session and the transaction with it.

    Raises LedgerError as `begin_session` does, TransientError or ConfigurationError as `translate` sorts them.
    """
    settings = session_settings(
        lock_timeout_seconds=lock_timeout_seconds,
        idle_seconds=idle_seconds,
        statement_timeout_seconds=statement_timeout_seconds,
    )
    with translated(engine), engine.begin() as connection:
        watchdog.allow(connection, statement_timeout_seconds)
        begin_session(connection, settings)
        yield connection


@contextmanager
def _ended_by_no_setting_of_others() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if state_of(error.orig) != "57014":
            raise
        raise TransientError(
            "PostgreSQL ended the first statement of a transaction, which sets our limits: it is overloaded, or the "
            "statement_timeout of the role, the database or the server is shorter than a statement takes at all "
            "(SHOW statement_timeout, then ALTER ROLE or ALTER DATABASE … RESET statement_timeout)."
        ) from None


def begin_session(connection: Connection, settings: str) -> None:
    """Make a transaction that has just begun ours: set what it depends on and check what only BEGIN can say.

    *settings* as `session_settings` returns them. Raises LedgerError when the transaction is not READ COMMITTED and
    read write, ConfigurationError when the database does not know what its bytes mean.
    """
    with _ended_by_no_setting_of_others():
        began = connection.execute(query("begin_session"), {"settings": settings}).one()
    if began.encoding == "SQL_ASCII":
        raise ConfigurationError(
            "The database has the encoding SQL_ASCII, in which PostgreSQL does not know what the bytes of a text mean: "
            "nothing can be delivered from it exactly. Move it into a database with ENCODING 'UTF8'."
        )
    if began.isolation != "read committed":
        raise LedgerError(
            f"A ledger transaction runs as {began.isolation.upper()}: events that commit late would be lost. "
            "Open the engine with create_outbox_engine()."
        )
    if began.is_read_only != "off":
        raise LedgerError("A ledger transaction is read only: open the engine with create_outbox_engine().")
