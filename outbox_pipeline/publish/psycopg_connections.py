"""psycopg 3's Connection and AsyncConnection. Loaded only where psycopg is.

Outside autocommit psycopg begins a transaction with the first statement. In autocommit one may still be open, begun
by `connection.transaction()`, and that counts. In pipeline mode each step waits for its answer, because what follows
depends on it; an error of an earlier statement then surfaces at the first step, as its own.
"""

from contextlib import nullcontext
from functools import cache, partial
from typing import Any

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from outbox_pipeline.publish import prepared
from outbox_pipeline.publish.parameters import pyformat
from outbox_pipeline.publish.steps import AsyncDriver, Driver, Reply, Statement


def driver_of(connection: Connection[Any]) -> Driver:
    """Return the driver of *connection*."""
    return Driver(partial(_execute, connection), _is_autocommit(connection))


def async_driver_of(connection: AsyncConnection[Any]) -> AsyncDriver:
    """Return the driver of *connection*."""
    return AsyncDriver(partial(_execute_async, connection), _is_autocommit(connection))


def _execute(connection: Connection[Any], statement: Statement) -> Reply:
    if prepared.is_to_be_asked(connection):
        prepared.learn(connection, _sent(connection, prepared.QUESTION).text)
    return _sent(connection, statement)


def _sent(connection: Connection[Any], statement: Statement) -> Reply:
    # A cursor of our own: the connection's factories may make ones that speak another parameter style, or other rows.
    waiting = connection.pipeline() if _is_pipelined(connection) else nullcontext()
    with Cursor(connection, row_factory=tuple_row) as cursor:
        with waiting:
            cursor.execute(_encoded(statement.sql), statement.parameters, prepare=_prepare(connection))
        return Reply(cursor.rowcount, _text(cursor.fetchone()) if statement.is_question else None)


async def _execute_async(connection: AsyncConnection[Any], statement: Statement) -> Reply:
    if prepared.is_to_be_asked(connection):
        prepared.learn(connection, (await _sent_async(connection, prepared.QUESTION)).text)
    return await _sent_async(connection, statement)


async def _sent_async(connection: AsyncConnection[Any], statement: Statement) -> Reply:
    waiting = connection.pipeline() if _is_pipelined(connection) else nullcontext()
    async with AsyncCursor(connection, row_factory=tuple_row) as cursor:
        async with waiting:
            await cursor.execute(_encoded(statement.sql), statement.parameters, prepare=_prepare(connection))
        return Reply(cursor.rowcount, _text(await cursor.fetchone()) if statement.is_question else None)


def _prepare(connection: Connection[Any] | AsyncConnection[Any]) -> bool | None:
    # None leaves it to psycopg and to what the application has set.
    return None if prepared.is_direct(connection) else False


def _text(row: tuple[Any, ...] | None) -> str | None:
    return None if row is None else row[0]


@cache
def _encoded(sql: str) -> bytes:
    return pyformat(sql).encode()


def _is_pipelined(connection: Connection[Any] | AsyncConnection[Any]) -> bool:
    return connection.info.pipeline_status != PipelineStatus.OFF


def _is_autocommit(connection: Connection[Any] | AsyncConnection[Any]) -> bool:
    return connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE
