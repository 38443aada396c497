"""psycopg 3's Connection and AsyncConnection. Loaded only where psycopg is.

Outside autocommit psycopg begins a transaction with the first statement. In autocommit one may still be open, begun
by `connection.transaction()`, and that counts.
"""

import re
from functools import cache, partial
from typing import Any

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, Error
from psycopg.pq import TransactionStatus

from outbox_pipeline.publish.steps import AsyncWire, Step, Wire

_PARAMETER = re.compile(r":(\w+)")


def wire_of(connection: Connection[Any]) -> Wire:
    """Return the wire of *connection*."""
    return Wire(partial(_execute, connection), (Error,), _is_autocommit(connection))


def async_wire_of(connection: AsyncConnection[Any]) -> AsyncWire:
    """Return the wire of *connection*."""
    return AsyncWire(partial(_execute_async, connection), (Error,), _is_autocommit(connection))


def _execute(connection: Connection[Any], step: Step) -> int:
    # A cursor of our own: the connection's factory may make ones that speak another parameter style.
    with Cursor(connection) as cursor:
        return cursor.execute(_pyformat(step[0]), step[1]).rowcount


async def _execute_async(connection: AsyncConnection[Any], step: Step) -> int:
    async with AsyncCursor(connection) as cursor:
        return (await cursor.execute(_pyformat(step[0]), step[1])).rowcount


@cache
def _pyformat(statement: str) -> bytes:
    return _PARAMETER.sub(r"%(\1)s", statement).encode()


def _is_autocommit(connection: Connection[Any] | AsyncConnection[Any]) -> bool:
    return connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE
