"""Read a batch's events as one Arrow table, the same bytes each time: rows are immutable and ordered by position.

Connections are kept for the next batch: opening one takes the driver as long as reading 30,000 events. Idle ones hold
no transaction and close when their engine is disposed.

Invariant: no statement goes out between transactions. The driver prepares each before it runs it, and a pooler would
take the two to different sessions; only the driver's own BEGIN and COMMIT are one message.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from uuid import UUID
from weakref import WeakKeyDictionary

import adbc_driver_manager
import pyarrow as pa
from adbc_driver_postgresql import StatementOptions, dbapi
from sqlalchemy import Engine, event

from outbox_pipeline.errors import ConfigurationError, OutboxError, first_line, without_secrets
from outbox_pipeline.postgres.conninfo import conninfo_of
from outbox_pipeline.postgres.errors import answer_of, of_the_driver, server_of, translated, unreachable
from outbox_pipeline.postgres.queries import query_text
from outbox_pipeline.postgres.session import TRANSACTION, session_settings
from outbox_pipeline.postgres.states import state_of

#: The columns of an extracted batch.
EVENT_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("event_id", pa.binary(16)),
        ("event_type", pa.string()),
        ("event_date_time", pa.timestamp("us", tz="UTC")),
        ("environment", pa.string()),
        ("event_context", pa.string()),
        ("metadata_version", pa.int64()),
        ("recorded_at", pa.timestamp("us", tz="UTC")),
        ("trace_context", pa.string()),
    ]
)

#: More than a batch ever has: the driver then hands out one chunk, and nothing has to be joined, which is a copy.
_ONE_CHUNK_BYTES = 1_000_000_000

#: A batch of 160 MB takes five minutes over half a megabyte a second, and its text is sent within the statement.
_STATEMENT_SECONDS = 600
#: Nothing but a migration locks the events against readers, and it gives up after a minute.
_LOCK_SECONDS = 60

#: A value of each type that a batch has.
_ONE_OF_EACH = "SELECT 0::bigint, ''::bytea, ''::text, pg_catalog.now(), '{}'::json"
_PLAIN_NAMES = "-c quote_all_identifiers=off -c search_path=pg_catalog"

#: Connections that wait for the next batch, by the engine to whose database they lead.
_idle: WeakKeyDictionary[Engine, SimpleQueue[dbapi.Connection]] = WeakKeyDictionary()


def extract_events(engine: Engine, batch_id: UUID) -> pa.Table:
    """Return the events at the batch's positions, in `EVENT_SCHEMA`, in one chunk.

    Raises TransientError when PostgreSQL cannot be reached, ConfigurationError when it has a text that UTF-8 has no
    characters for, and what its answer means when it refuses the query.
    """
    with translated(engine):
        try:
            return _in_schema(_read(engine, batch_id))
        except adbc_driver_manager.Error as error:
            raise _translated(error, engine) from None


def _read(engine: Engine, batch_id: UUID) -> pa.Table:
    with _transaction(engine, batch_id) as connection, connection.cursor() as cursor:
        cursor.adbc_statement.set_options(**{StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(_ONE_CHUNK_BYTES)})
        cursor.execute(query_text("extract_events"))
        return cursor.fetch_arrow_table()


@contextmanager
def _transaction(engine: Engine, batch_id: UUID) -> Iterator[dbapi.Connection]:
    idle = _idle.setdefault(engine, SimpleQueue())
    connection = _begun(idle, batch_id) or _begin(_opened(engine), batch_id)
    try:
        yield connection
        connection.adbc_connection.set_autocommit(True)
    except BaseException:
        connection.close()
        raise
    idle.put(connection)


def _opened(engine: Engine) -> dbapi.Connection:
    if connection := _knowing_types(conninfo_of(engine)):
        return connection
    with _without_options():
        # Nothing else reaches a session before the driver asks for the types; poolers refuse it, so only where needed.
        connection = _knowing_types(conninfo_of(engine, options=_PLAIN_NAMES))
    if connection is None:
        raise _unknown_types()
    return connection


def _knowing_types(conninfo: str) -> dbapi.Connection | None:
    connection = dbapi.connect(conninfo, autocommit=True)
    try:
        if _knows_types(connection):
            return connection
    except BaseException:
        connection.close()
        raise
    connection.close()
    return None


@contextmanager
def _without_options() -> Iterator[None]:
    try:
        yield
    except adbc_driver_manager.Error as error:
        # A failed connect has no state; these are the words of PgBouncer.
        if "unsupported startup parameter" in str(error):
            raise _unknown_types() from None
        raise


def _unknown_types() -> ConfigurationError:
    return ConfigurationError(
        "The bulk driver does not know PostgreSQL's types in the sessions of this role, and a pooler keeps it from "
        "setting more: run ALTER ROLE … RESET quote_all_identifiers and search_path, and ALTER DATABASE the same."
    )


def _knows_types(connection: dbapi.Connection) -> bool:
    # The driver asks when it connects, and takes types by names that quote_all_identifiers or another function of that
    # name in the search path turns into others.
    connection.adbc_connection.set_autocommit(False)
    with connection.cursor() as cursor:
        cursor.execute(_ONE_OF_EACH)
        types = cursor.fetch_arrow_table().schema.types
    connection.adbc_connection.set_autocommit(True)
    return not any(isinstance(one, pa.OpaqueType) for one in types)


def _begun(idle: SimpleQueue[dbapi.Connection], batch_id: UUID) -> dbapi.Connection | None:
    while True:
        try:
            connection = idle.get_nowait()
        except Empty:
            return None
        # The session may have ended, in a restart of PostgreSQL for one: then another connection will do.
        with suppress(adbc_driver_manager.Error):
            return _begin(connection, batch_id)


def _begin(connection: dbapi.Connection, batch_id: UUID) -> dbapi.Connection:
    try:
        connection.adbc_connection.set_autocommit(False)
        _run(connection, TRANSACTION)
        _run(connection, query_text("begin_session").replace(":settings", "$1"), _settings(batch_id))
    except BaseException:
        connection.close()
        raise
    return connection


def _settings(batch_id: UUID) -> str:
    return session_settings(
        lock_timeout_seconds=_LOCK_SECONDS, statement_timeout_seconds=_STATEMENT_SECONDS, batch_id=batch_id
    )


def _run(connection: dbapi.Connection, statement: str, *parameters: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)


@event.listens_for(Engine, "engine_disposed")
def _close_idle(engine: Engine) -> None:
    idle = _idle.pop(engine, SimpleQueue())
    while not idle.empty():
        idle.get_nowait().close()


def _in_schema(table: pa.Table) -> pa.Table:
    columns = [_plain(table.column(field.name)).cast(field.type, safe=False) for field in EVENT_SCHEMA]
    return _in_order(pa.table(columns, schema=EVENT_SCHEMA).combine_chunks())


def _in_order(table: pa.Table) -> pa.Table:
    # The rows come ordered as it is; SQL without ORDER BY does not promise it, and the same bytes each time rest on it.
    positions = table["position"].to_numpy()
    if bool((positions[1:] > positions[:-1]).all()):
        return table
    return table.sort_by("position").combine_chunks()


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    # PostgreSQL's json arrives as Arrow's JSON extension type over strings.
    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    storage = [chunk.storage for chunk in column.chunks]
    return pa.chunked_array(storage, type=column.type.storage_type)


def _translated(error: adbc_driver_manager.Error, engine: Engine) -> OutboxError:
    server, state = server_of(engine), state_of(error)
    if state:
        return answer_of(server, state, name=type(error).__name__, said=_said(error))
    if error.status_code == adbc_driver_manager.AdbcStatusCode.IO:
        return unreachable(server, _said(error))
    return of_the_driver(server, error)


def _said(error: adbc_driver_manager.Error) -> str:
    # The driver's own text has DETAIL, CONTEXT and the statement in it.
    said = [value for name, value in error.details or [] if "PG_DIAG_MESSAGE_PRIMARY" in str(name)]
    return without_secrets(said[0].decode(errors="replace")) if said else first_line(error)
