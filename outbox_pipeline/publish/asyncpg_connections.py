"""asyncpg's Connection, and the proxy its pool hands out. Loaded only where asyncpg is.

asyncpg opens no transaction by itself: outside `connection.transaction()` every statement is its own.
"""

from functools import partial
from typing import Any

from asyncpg import InterfaceError, PostgresError

from outbox_pipeline.publish.parameters import numbered
from outbox_pipeline.publish.steps import AsyncWire, Reply, Step


def async_wire_of(connection: Any) -> AsyncWire:
    """Return the wire of *connection*."""
    return AsyncWire(
        partial(_execute, connection), (PostgresError, InterfaceError), is_autocommit=not connection.is_in_transaction()
    )


async def _execute(connection: Any, step: Step) -> Reply:
    statement, names = numbered(step.statement)
    values = [step.parameters[name] for name in names]
    if step.is_question:
        return Reply(text=await connection.fetchval(statement, *values))
    # "INSERT 0 3"; savepoints have no number.
    count = str(await connection.execute(statement, *values)).rpartition(" ")[2]
    return Reply(int(count) if count.isdecimal() else 0)
