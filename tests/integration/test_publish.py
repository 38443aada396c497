"""Publishing on a real PostgreSQL: an event exists exactly when the caller's transaction does."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, Text, cast, create_engine, func, select
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox_pipeline import Event, NoTransactionError, PublishError, publish_event, publish_events
from outbox_pipeline.events import prepare_event
from outbox_pipeline.postgres.tables import event as event_table
from outbox_pipeline.publish import insert_events
from outbox_pipeline.publish.steps import PAGE_ROWS


class UserCreated(Event):
    """What the tests publish."""

    email: str


def stored(engine: Engine) -> list[Any]:
    """Return every event in the outbox in the order of positions, its context as text."""
    columns = [column for column in event_table.c if column.name != "event_context"]
    context = cast(event_table.c.event_context, Text).label("event_context")
    with engine.connect() as connection:
        return list(connection.execute(select(*columns, context).order_by(event_table.c.position)))


def test_commit_publishes_every_field(outbox_engine: Engine) -> None:
    """After the commit the outbox holds the event exactly as it was given."""
    when = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    with Session(outbox_engine) as session, session.begin():
        event_id = publish_event(
            session,
            UserCreated(email="ä@b.c"),
            metadata_version=2**63 - 1,
            event_date_time=when,
            environment="test",
            trace_context="00-ab-cd-01",
        )

    (row,) = stored(outbox_engine)

    assert (row.event_id, row.event_type, row.event_date_time) == (event_id, "user_created", when)
    assert (row.environment, row.metadata_version, row.trace_context) == ("test", 2**63 - 1, "00-ab-cd-01")
    assert row.event_context == '{"email":"ä@b.c"}'
    assert row.context_bytes == len(row.event_context.encode())


def test_rollback_publishes_nothing(outbox_engine: Engine) -> None:
    """An event of a transaction that was rolled back never existed."""
    with Session(outbox_engine) as session:
        publish_event(session, UserCreated(email="a"))
        session.rollback()

    assert stored(outbox_engine) == []


def test_nothing_is_committed_by_publishing(outbox_engine: Engine) -> None:
    """Until the caller commits nobody else sees the event."""
    with Session(outbox_engine) as session:
        publish_events(session, [UserCreated(email="a")] * 3)

        assert stored(outbox_engine) == []
        session.commit()
    assert len(stored(outbox_engine)) == 3


def test_savepoint_rollback_takes_only_its_events_back(outbox_engine: Engine) -> None:
    """What a rolled-back savepoint published is gone, what came before and after stays."""
    with Session(outbox_engine) as session, session.begin():
        publish_event(session, UserCreated(email="before"))
        savepoint = session.begin_nested()
        publish_event(session, UserCreated(email="inside"))
        savepoint.rollback()
        publish_event(session, UserCreated(email="after"))

    assert [json.loads(row.event_context)["email"] for row in stored(outbox_engine)] == ["before", "after"]


def test_connection_and_scoped_session_publish_too(outbox_engine: Engine) -> None:
    """Core applications and web frameworks use what they have."""
    with outbox_engine.begin() as connection:
        publish_event(connection, {"from": "connection"}, event_type="t")
    sessions = scoped_session(sessionmaker(outbox_engine))
    publish_event(sessions, {"from": "scoped_session"}, event_type="t")
    sessions.commit()
    sessions.remove()

    assert [json.loads(row.event_context)["from"] for row in stored(outbox_engine)] == ["connection", "scoped_session"]


def test_session_with_several_databases_uses_the_outbox(outbox_engine: Engine) -> None:
    """A session bound by table writes to the database the outbox table is bound to."""
    with Session(binds={event_table: outbox_engine}) as session, session.begin():
        publish_event(session, UserCreated(email="a"))

    assert len(stored(outbox_engine)) == 1


def test_bulk_keeps_order_over_pages(outbox_engine: Engine) -> None:
    """Many events arrive in the order given, their ids are returned in it, and each page joins the next."""
    events = [UserCreated(email=str(number)) for number in range(2 * PAGE_ROWS + 1)]
    with Session(outbox_engine) as session, session.begin():
        event_ids = publish_events(session, events)

    rows = stored(outbox_engine)

    assert [row.event_id for row in rows] == event_ids
    assert [json.loads(row.event_context)["email"] for row in rows] == [event.email for event in events]


def test_repeated_event_id_does_nothing(outbox_engine: Engine) -> None:
    """The first event with an id stays; publishing it again succeeds, returns the id and changes nothing."""
    event_id = uuid4()
    for email in ("first", "second"):
        with Session(outbox_engine) as session, session.begin():
            assert publish_event(session, UserCreated(email=email), event_id=event_id) == event_id

    (row,) = stored(outbox_engine)

    assert row.event_context == '{"email":"first"}'


def test_insert_events_counts_what_was_new(outbox_engine: Engine) -> None:
    """Rows already in the outbox, or twice in the call, do not count."""
    old, new = (prepare_event({}, event_type="t") for _ in range(2))
    with outbox_engine.begin() as connection:
        assert insert_events(connection, [old]).new_count == 1
        assert insert_events(connection, [old, new, new]).new_count == 1
        assert insert_events(connection, [old, new]).new_count == 0

    assert len(stored(outbox_engine)) == 2


def test_refused_event_leaves_the_transaction_usable(outbox_engine: Engine) -> None:
    """A refusal comes before the first statement, so the caller can go on and commit the rest."""
    with Session(outbox_engine) as session, session.begin():
        publish_event(session, UserCreated(email="good"))
        with pytest.raises(PublishError):
            publish_events(session, [{"a": 1}, {"a": float("nan")}], event_type="t")
        publish_event(session, UserCreated(email="also good"))

    assert len(stored(outbox_engine)) == 2


@pytest.mark.parametrize(
    ("context", "text"),
    [
        ({"n": 2**64}, '{"n":18446744073709551616}'),
        ({"n": -(10**60)}, '{"n":-1' + "0" * 60 + "}"),
        ({"n": 0.1, "price": "1.10"}, '{"n":0.1,"price":"1.10"}'),
        ({"t": "a\0b"}, '{"t":"a\\u0000b"}'),
        ({"t": "\ud800"}, '{"t":"\\ud800"}'),
        ({"b": 1, "a": {"b": [None, True]}}, '{"b":1,"a":{"b":[null,true]}}'),
        ({"t": "% :name %(x)s 🎉"}, '{"t":"% :name %(x)s 🎉"}'),
    ],
)
def test_context_is_kept_byte_for_byte(outbox_engine: Engine, context: dict[str, Any], text: str) -> None:
    """Large numbers, order of keys and escapes come back as they were written."""
    with outbox_engine.begin() as connection:
        publish_event(connection, context, event_type="t")

    assert [row.event_context for row in stored(outbox_engine)] == [text]


def test_deepest_allowed_context_is_accepted(outbox_engine: Engine) -> None:
    """The depth that is let through is one PostgreSQL can parse."""
    context: dict[str, Any] = {}
    for _ in range(200):
        context = {"a": context}

    with outbox_engine.begin() as connection:
        publish_event(connection, context, event_type="t")

    assert len(stored(outbox_engine)) == 1


def test_autocommit_is_refused_however_it_was_set(outbox_engine: Engine) -> None:
    """Engine, option or driver: a connection in autocommit gets no events, and afterwards none are there."""
    url = outbox_engine.url
    for engine in (
        outbox_engine.execution_options(isolation_level="AUTOCOMMIT"),
        create_engine(url, isolation_level="AUTOCOMMIT"),
        create_engine(url, connect_args={"autocommit": True}),
    ):
        with Session(engine) as session, pytest.raises(NoTransactionError):
            publish_event(session, UserCreated(email="a"))

    with outbox_engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(event_table)) == 0
