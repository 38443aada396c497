"""Read a batch's events as one Arrow table, the same bytes each time: rows are immutable and ordered by position.

Connections are kept for the next batch: opening one takes the driver as long as reading 30,000 events. Idle ones hold
no transaction and close when their engine is disposed. Each read has a limit, on the server and a little later here:
the driver waits for ever for a server that does not answer.

Invariant: no statement goes out between transactions. The driver prepares each before it runs it, and a pooler would
take the two to different sessions; only the driver's own BEGIN and COMMIT are one message.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from uuid import UUID
from weakref import WeakKeyDictionary

import adbc_driver_manager
import pyarrow as pa
from adbc_driver_postgresql import StatementOptions, dbapi
from sqlalchemy import Engine, event

from outbox_pipeline.batches import Batch
from outbox_pipeline.errors import ConfigurationError, OutboxError, TransientError, first_line, without_secrets
from outbox_pipeline.event_schema import arrow_schema
from outbox_pipeline.limits import SLOWEST_BYTES_PER_SECOND, StepLimits, limited
from outbox_pipeline.postgres.conninfo import conninfo_of
from outbox_pipeline.postgres.errors import answer_of, of_the_driver, server_of, translated, unreachable
from outbox_pipeline.postgres.queries import query_text
from outbox_pipeline.postgres.quoting import reset_statements
from outbox_pipeline.postgres.session import TRANSACTION, session_settings
from outbox_pipeline.postgres.sqlstates import state_of
from outbox_pipeline.postgres.watchdog import CLOSED, PING_SECONDS, client_limit, open_watched, ports_of

#: The columns of an extracted batch.
EVENT_SCHEMA = arrow_schema()

#: More than a batch ever has: the driver then hands out one chunk, and nothing has to be joined, which is a copy.
_ONE_CHUNK_BYTES = 1_000_000_000

#: Nothing but a migration locks the events against readers, and it gives up after a minute.
_LOCK_SECONDS = 60

#: A value that is none of its type, an object that is not there.
_MISREAD = ("22", "42")
#: A value of each type that a batch has.
_ONE_OF_EACH = "SELECT 0::bigint, ''::bytea, ''::text, pg_catalog.now(), '{}'::json"
_PLAIN_NAMES = "-c quote_all_identifiers=off -c search_path=pg_catalog"


@dataclass(frozen=True)
class _Reader:
    """A connection, and the socket that it waits on where it is known."""

    connection: dbapi.Connection
    socket: int | None
    where: str

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """End the waits of this block after *seconds*, with a TransientError."""
        with limited(seconds) as limit:
            if self.socket is not None:
                limit.hold(self.socket)
            try:
                yield
            except adbc_driver_manager.Error:
                if not limit.is_over:
                    raise
                said = f"{self.where} did not hand out a batch within {seconds:.0f} s, {CLOSED}"
                raise TransientError(said) from None


#: Connections that wait for the next batch, by the engine to whose database they lead.
_idle: WeakKeyDictionary[Engine, SimpleQueue[_Reader]] = WeakKeyDictionary()


def reading_seconds(batch: Batch, limits: StepLimits) -> float:
    """Return how long the read of a batch may take: by its size, because a slow disk is no silent server.

    Another attempt has as much again, five times at most, so that what is slower still gets through.
    """
    return (limits.reading + batch.context_bytes / SLOWEST_BYTES_PER_SECOND) * min(max(batch.attempt, 1), 5)


def extract_events(engine: Engine, batch_id: UUID, *, seconds: float = StepLimits.reading) -> pa.Table:
    """Return the events at the batch's positions, in `EVENT_SCHEMA`, in one chunk.

    The server ends the read after *seconds*. Raises TransientError when it does, when PostgreSQL cannot be reached or
    does not answer, ConfigurationError when it has a text that UTF-8 has no characters for, and what its answer means
    when it refuses the query.
    """
    with translated(engine):
        try:
            return _in_schema(_read(engine, batch_id, seconds))
        except adbc_driver_manager.Error as error:
            raise _translated(error, engine) from None


def _read(engine: Engine, batch_id: UUID, seconds: float) -> pa.Table:
    with _transaction(engine, batch_id, seconds) as connection, connection.cursor() as cursor:
        cursor.adbc_statement.set_options(**{StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(_ONE_CHUNK_BYTES)})
        cursor.execute(query_text("extract_events"))
        return cursor.fetch_arrow_table()


@contextmanager
def _transaction(engine: Engine, batch_id: UUID, seconds: float) -> Iterator[dbapi.Connection]:
    idle = _idle.setdefault(engine, SimpleQueue())
    reader = _begun(idle, batch_id, seconds) or _begin(_opened(engine), batch_id, seconds)
    try:
        with reader.limited(client_limit(seconds)):
            yield reader.connection
            reader.connection.adbc_connection.set_autocommit(True)
    except BaseException:
        reader.connection.close()
        raise
    idle.put(reader)


def require_types(engine: Engine) -> None:
    """Raise ConfigurationError when the bulk driver cannot know PostgreSQL's types in the engine's sessions."""
    with translated(engine):
        try:
            _opened(engine).connection.close()
        except adbc_driver_manager.Error as error:
            raise _translated(error, engine) from None


def _opened(engine: Engine) -> _Reader:
    if reader := _knowing_types(engine):
        return reader
    with _without_options(engine):
        # Nothing else reaches a session before the driver asks for the types; poolers refuse it, so only where needed.
        reader = _knowing_types(engine, options=_PLAIN_NAMES)
    if reader is None:
        raise _unknown_types(engine)
    return reader


def _knowing_types(engine: Engine, **parameters: str) -> _Reader | None:
    conninfo = conninfo_of(engine, **parameters)
    try:
        connection, socket = open_watched(lambda: dbapi.connect(conninfo, autocommit=True), ports_of(engine))
    except adbc_driver_manager.Error as error:
        # Its own question for the types fails where the search path leads to others of the same names.
        if state_of(error).startswith(_MISREAD):
            return None
        raise
    reader = _Reader(connection, socket, server_of(engine).where)
    try:
        with reader.limited(PING_SECONDS):
            is_fit = _knows_types(connection)
    except BaseException:
        connection.close()
        raise
    if is_fit:
        return reader
    connection.close()
    return None


@contextmanager
def _without_options(engine: Engine) -> Iterator[None]:
    try:
        yield
    except adbc_driver_manager.Error as error:
        # A failed connect has no state; these are the words of PgBouncer.
        if "unsupported startup parameter" in str(error):
            raise _unknown_types(engine) from None
        raise


def _unknown_types(engine: Engine) -> ConfigurationError:
    return ConfigurationError(
        "The bulk driver does not know PostgreSQL's types in the sessions of this role, and a pooler keeps it from "
        f"setting more: {reset_statements(engine.url, ['quote_all_identifiers', 'search_path'])}."
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


def _begun(idle: SimpleQueue[_Reader], batch_id: UUID, seconds: float) -> _Reader | None:
    while True:
        try:
            reader = idle.get_nowait()
        except Empty:
            return None
        # The session may have ended or gone silent, in a restart of PostgreSQL for one: then another will do.
        with suppress(adbc_driver_manager.Error, TransientError):
            return _begin(reader, batch_id, seconds)


def _begin(reader: _Reader, batch_id: UUID, seconds: float) -> _Reader:
    settings = session_settings(
        lock_timeout_seconds=_LOCK_SECONDS, statement_timeout_seconds=seconds, batch_id=batch_id
    )
    try:
        with reader.limited(min(PING_SECONDS, client_limit(seconds))):
            reader.connection.adbc_connection.set_autocommit(False)
            _run(reader.connection, TRANSACTION)
            _run(reader.connection, query_text("begin_session").replace(":settings", "$1"), settings)
    except BaseException:
        reader.connection.close()
        raise
    return reader


def _run(connection: dbapi.Connection, statement: str, *parameters: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)


@event.listens_for(Engine, "engine_disposed")
def _close_idle(engine: Engine) -> None:
    idle = _idle.pop(engine, SimpleQueue())
    while not idle.empty():
        idle.get_nowait().connection.close()


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
