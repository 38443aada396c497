"""Publish events in the caller's own transaction.

The one entrance for applications. It never commits, rolls back or opens a transaction beyond what SQLAlchemy begins
by itself, and it does not deliver: the pipeline finds the events once the caller has committed.

Invariant: events and business data share one transaction. So a connection in autocommit is refused, and all events
of a call are checked before the first is written.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Connection, Text, bindparam, cast, column, func, select
from sqlalchemy.dialects.postgresql import JSON, Insert, insert
from sqlalchemy.orm import Session, scoped_session

from outbox_pipeline.errors import NoTransactionError
from outbox_pipeline.events import Event, EventRow, prepare_event
from outbox_pipeline.postgres import tables

#: Bounds of one statement, which is one round trip. PostgreSQL takes no message of 1 GB or more.
PAGE_ROWS = 1_000
PAGE_CHARACTERS = 8_000_000

#: What `publish_event` writes through.
Transaction = Session | scoped_session[Session] | Connection

_SENT = tuple(EventRow.__slots__)


def publish_event(
    session: Transaction,
    event: Event | Mapping[str, Any],
    *,
    event_type: str | None = None,
    metadata_version: int | None = None,
    event_date_time: datetime | None = None,
    environment: str | None = None,
    event_id: UUID | str | None = None,
    trace_context: str | None = None,
) -> UUID:
    """Write *event* into the outbox as part of the transaction of *session* and return its id.

    *session* may also be a SQLAlchemy Connection. *event* is an Event, or a mapping together with an `event_type`.
    With an `event_id` of your own, publishing it again does nothing, whatever the event says now; without one a
    UUID version 7 is drawn. `event_date_time` must be aware and is now by default.

    Raises PublishError when the event cannot be stored and NoTransactionError on a connection in autocommit; in
    both cases nothing was written and the transaction can go on. Errors of the database come as SQLAlchemy's.
    """
    row = prepare_event(
        event,
        event_type=event_type,
        metadata_version=metadata_version,
        event_date_time=event_date_time,
        environment=environment,
        event_id=event_id,
        trace_context=trace_context,
    )
    insert_events(_connection(session), [row])
    return row.event_id


def publish_events(
    session: Transaction,
    events: Iterable[Event | Mapping[str, Any]],
    *,
    event_type: str | None = None,
    metadata_version: int | None = None,
    event_date_time: datetime | None = None,
    environment: str | None = None,
    trace_context: str | None = None,
) -> list[UUID]:
    """Write *events* in their order, a thousand to a round trip, and return their ids in the same order.

    The keywords apply to every event. All are checked before the first is written; otherwise as `publish_event`.
    """
    rows = [
        prepare_event(
            event,
            event_type=event_type,
            metadata_version=metadata_version,
            event_date_time=event_date_time,
            environment=environment,
            trace_context=trace_context,
        )
        for event in events
    ]
    insert_events(_connection(session), rows)
    return [row.event_id for row in rows]


def insert_events(connection: Connection, rows: Sequence[EventRow]) -> int:
    """Insert *rows* and return how many were new; those whose `event_id` the outbox already has are left out.

    Raises NoTransactionError on a connection in autocommit, where a failing page would leave earlier ones behind.
    """
    _require_transaction(connection)
    return sum(connection.execute(_insert_page(), _as_arrays(page)).rowcount for page in _pages(rows))


def _connection(session: Transaction) -> Connection:
    if isinstance(session, Connection):
        return session
    if not isinstance(session, Session | scoped_session):
        raise TypeError(
            f"Publishing needs a SQLAlchemy Session or Connection, not {type(session).__name__}; "
            "with an AsyncSession call 'await session.run_sync(publish_event, event)'."
        )
    # The table tells a session with several databases which one is meant.
    return session.connection(bind_arguments={"clause": tables.event})


def _require_transaction(connection: Connection) -> None:
    option = connection.get_execution_options().get("isolation_level")
    # The driver knows best: autocommit can also come from the engine or from connect_args. Only psycopg's True
    # counts, sqlite3 has numbers there.
    driver = getattr(connection.connection.dbapi_connection, "autocommit", None)
    if option == "AUTOCOMMIT" or driver is True:
        raise NoTransactionError(
            "This connection is in autocommit, so events and business data would not share a transaction. "
            "Use a session or connection without isolation_level='AUTOCOMMIT'."
        )


def _pages(rows: Sequence[EventRow]) -> Iterator[list[EventRow]]:
    page: list[EventRow] = []
    characters = 0
    for row in rows:
        characters += len(row.event_context)
        if page and (len(page) == PAGE_ROWS or characters > PAGE_CHARACTERS):
            yield page
            page, characters = [], len(row.event_context)
        page.append(row)
    if page:
        yield page


def _as_arrays(rows: Sequence[EventRow]) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in _SENT}


@lru_cache(maxsize=1)
def _insert_page() -> Insert:
    # One array a column makes the statement the same for any number of rows. The context travels as text: through
    # SQLAlchemy's JSON type it would be serialised a second time.
    types = {name: tables.event.c[name].type for name in _SENT} | {"event_context": Text()}
    arrays = [cast(bindparam(name), ARRAY(types[name])) for name in _SENT]
    page = func.unnest(*arrays).table_valued(*[column(name, types[name]) for name in _SENT]).render_derived(name="page")
    values = [cast(page.c[name], JSON) if name == "event_context" else page.c[name] for name in _SENT]
    # Naming the column matters: without it a clash of positions would pass in silence and lose the event.
    statement = (
        insert(tables.event).from_select(_SENT, select(*values)).on_conflict_do_nothing(index_elements=["event_id"])
    )
    return statement.execution_options(preserve_rowcount=True)
