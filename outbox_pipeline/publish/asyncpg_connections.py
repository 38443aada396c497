"""asyncpg's Connection, and the proxy its pool hands out. Loaded only where asyncpg is.

asyncpg opens no transaction by itself: outside `connection.transaction()` every statement is its own.
"""

import re
from functools import cache, partial
from typing import Any

from asyncpg import InterfaceError, PostgresError

from outbox_pipeline.publish.steps import AsyncWire, Reply, Step

_PARAMETER = re.compile(r":(\w+)")


def async_wire_of(connection: Any) -> AsyncWire:
    """Return the wire of *connection*."""
    return AsyncWire(
        partial(_execute, connection), (PostgresError, InterfaceError), is_autocommit=not connection.is_in_transaction()
    )


async def _execute(connection: Any, step: Step) -> Reply:
    statement, names = _numbered(step.statement)
    values = [step.parameters[name] for name in names]
    if step.is_question:
        return Reply(text=await connection.fetchval(statement, *values))
    # "INSERT 0 3"; savepoints have no number.
    count = str(await connection.execute(statement, *values)).rpartition(" ")[2]
    return Reply(int(count) if count.isdecimal() else 0)


@cache
def _numbered(statement: str) -> tuple[str, tuple[str, ...]]:
    names = tuple(_PARAMETER.findall(statement))
    numbers = iter(range(1, len(names) + 1))
    return _PARAMETER.sub(lambda _: f"${next(numbers)}", statement), names
