"""asyncpg's Connection, and the proxy its pool hands out. Loaded only where asyncpg is.

asyncpg opens no transaction by itself: outside `connection.transaction()` every statement is its own.
"""

from functools import partial
from typing import Any

from outbox_pipeline.publish.parameters import numbered
from outbox_pipeline.publish.steps import AsyncDriver, Reply, Statement


def async_driver_of(connection: Any) -> AsyncDriver:
    """Return the driver of *connection*."""
    return AsyncDriver(partial(_execute, connection), is_autocommit=not connection.is_in_transaction())


async def _execute(connection: Any, statement: Statement) -> Reply:
    sql, names = numbered(statement.sql)
    values = [statement.parameters[name] for name in names]
    if statement.is_question:
        return Reply(text=await connection.fetchval(sql, *values))
    # "INSERT 0 3"; savepoints have no number.
    count = str(await connection.execute(sql, *values)).rpartition(" ")[2]
    return Reply(int(count) if count.isdecimal() else 0)
