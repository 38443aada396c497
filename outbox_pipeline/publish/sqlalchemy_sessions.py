"""SQLAlchemy's Session, scoped_session and Connection. Loaded only where SQLAlchemy is.

Sessions that are awaited come here too: SQLAlchemy runs these functions for them (`run_sync`).
"""

from contextlib import nullcontext
from functools import cache, partial
from typing import Any

from sqlalchemy import Connection, TextClause, text

from outbox_pipeline.postgres import tables
from outbox_pipeline.publish.steps import Driver, Reply, Statement

#: SQLAlchemy's names for the two ways it uses psycopg 3.
_PSYCOPG = ("psycopg", "psycopg_async")


def driver_of(session: Any) -> Driver:
    """Return the driver of *session*, which begins its transaction as with any statement."""
    connection = session
    if not isinstance(session, Connection):
        # The table tells a session with several databases which one is meant.
        connection = session.connection(bind_arguments={"clause": tables.event})
    return Driver(partial(_execute, connection), _is_autocommit(connection))


def _execute(connection: Connection, statement: Statement) -> Reply:
    if connection.dialect.driver not in _PSYCOPG:
        return _sent(connection, statement)
    # psycopg is loaded here, and nowhere else.
    from outbox_pipeline.publish import prepared

    psycopg_connection: Any = connection.connection.driver_connection
    if prepared.is_to_be_asked(psycopg_connection):
        with prepared.unprepared(psycopg_connection):
            prepared.learn(psycopg_connection, _sent(connection, prepared.QUESTION).text)
    with nullcontext() if prepared.is_direct(psycopg_connection) else prepared.unprepared(psycopg_connection):
        return _sent(connection, statement)


def _sent(connection: Connection, statement: Statement) -> Reply:
    result = connection.execute(_clause(statement.sql), statement.parameters)
    return Reply(text=result.scalar()) if statement.is_question else Reply(result.rowcount)


@cache
def _clause(sql: str) -> TextClause:
    return text(sql).execution_options(preserve_rowcount=True)


def _is_autocommit(connection: Connection) -> bool:
    option = connection.get_execution_options().get("isolation_level")
    # The driver knows best: autocommit can also come from the engine or from connect_args. Only psycopg's True
    # counts, sqlite3 has numbers there.
    return option == "AUTOCOMMIT" or getattr(connection.connection.dbapi_connection, "autocommit", None) is True
