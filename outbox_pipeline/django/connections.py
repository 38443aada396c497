"""Django's connections as publishing needs them.

Everything goes through Django's own cursor: it works on psycopg 3 and psycopg2 alike, raises Django's errors, refuses a
transaction that must be rolled back, another thread and async code, and is seen by instrumentation.

Invariant: what a test accepts production accepts. The transaction that Django's TestCase puts around a test is none of
the application's, so publishing outside `atomic` is autocommit there too.
"""

from functools import partial
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections, router

from outbox_pipeline.django.blocks import entered_later, is_of_testcase
from outbox_pipeline.errors import ConfigurationError, NoTransactionError
from outbox_pipeline.publish.parameters import pyformat
from outbox_pipeline.publish.steps import Driver, Reply, Statement


def driver_of(using: str | None) -> Driver:
    """Return the driver of the connection that *using* and the routers lead to.

    Raises ConfigurationError when it does not lead to PostgreSQL.
    """
    connection = connections[alias_of(using)]
    if connection.vendor != "postgresql":
        raise ConfigurationError(
            f"The database {connection.alias!r} is {connection.vendor}, and events are published in PostgreSQL: "
            "name its alias with using=, or in a database router."
        )
    return Driver(partial(_execute, connection), _is_autocommit(connection), _beginning(connection.alias))


def alias_of(using: str | None) -> str:
    """Return the alias *using*, or the one that the database routers name for outbox events."""
    if using is not None:
        return using
    # Models can be imported once Django is set up, this module before.
    from outbox_pipeline.django.models import OutboxEvent

    alias: str = router.db_for_write(OutboxEvent)
    return alias


def other_transaction(using: str | None) -> NoTransactionError | None:
    """Return why an event is not meant for the transaction it would be written in, None when nothing says so.

    Without *using*, the innermost transaction that is open on PostgreSQL has to be the one on the alias that the
    routers name.
    """
    if using is not None:
        return None
    alias = alias_of(using)
    later = entered_later(alias) if connections[alias].vendor == "postgresql" else None
    if later is None:
        return None
    return NoTransactionError(
        f"The transaction on {later!r} was opened last, but the event would be written in the database {alias!r}: "
        f"say using={later!r} if it belongs to that transaction, or using={alias!r} if it does not."
    )


def _execute(connection: Any, statement: Statement) -> Reply:
    with connection.cursor() as cursor:
        cursor.execute(pyformat(statement.sql), statement.parameters or None)
        return Reply(cursor.rowcount, cursor.fetchone()[0] if statement.is_question else None)


def _beginning(alias: str) -> str:
    named = "" if alias == DEFAULT_DB_ALIAS else f"using={alias!r}"
    return f"put both into one transaction.atomic({named})"


def _is_autocommit(connection: Any) -> bool:
    if connection.in_atomic_block:
        return all(is_of_testcase(block) for block in connection.atomic_blocks)
    is_autocommit: bool = connection.get_autocommit()
    return is_autocommit
