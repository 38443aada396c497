"""Publishing without a server: what it writes through, what it refuses, and how little it imports."""

import asyncio
import copy
import pickle
import re
import subprocess
import sys
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox_pipeline import (
    EventId,
    NoTransactionError,
    PublishError,
    publish_event,
    publish_event_async,
    publish_events,
    publish_events_async,
)
from outbox_pipeline.events import EventRow, prepare_event
from outbox_pipeline.postgres.queries import query_text
from outbox_pipeline.publish import insert_events, steps


@pytest.fixture
def engine() -> Engine:
    """Return an engine that has no outbox: whatever reaches it as a statement fails."""
    return create_engine("sqlite://")


def test_import_is_light() -> None:
    """An application that publishes loads no Dagster, pandas, Arrow or ClickHouse client, nor any database library."""
    program = (
        "import sys; from outbox_pipeline import *; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=_root())

    heavy = {"dagster", "pandas", "pyarrow", "clickhouse_connect", "pandera"}
    brought_by_the_application = {"sqlalchemy", "psycopg", "asyncpg", "greenlet", "opentelemetry", "structlog"}
    assert "pydantic" in loaded.stdout.split()
    assert not (heavy | brought_by_the_application) & set(loaded.stdout.split())


def _root() -> str:
    import outbox_pipeline

    return str(next(iter(outbox_pipeline.__path__)).rpartition("/")[0])


def test_autocommit_connection_is_refused(engine: Engine) -> None:
    """On a connection in autocommit nothing would tie the event to the business data."""
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(NoTransactionError, match="autocommit"),
    ):
        publish_event(connection, {}, event_type="t")


def test_autocommit_engine_is_refused_for_sessions_and_bulk(engine: Engine) -> None:
    """A session is no protection when its engine is in autocommit; publish_events asks as well."""
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")

    with Session(autocommit) as session, pytest.raises(NoTransactionError):
        publish_events(session, [{}, {}], event_type="t")
    with autocommit.connect() as connection, pytest.raises(NoTransactionError):
        insert_events(connection, [])


def test_all_events_are_checked_before_any_is_written(engine: Engine) -> None:
    """One bad event at the end refuses the whole call without a statement."""
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    with Session(engine) as session, pytest.raises(PublishError):
        publish_events(session, [{"a": 1}, {"a": {1}}], event_type="t")

    assert statements == []


def test_no_events_are_no_statement(engine: Engine) -> None:
    """Publishing an empty list is fine and asks the database nothing."""
    with Session(engine) as session:
        assert publish_events(session, []) == []


def test_scoped_session_is_a_session(engine: Engine) -> None:
    """A scoped_session is accepted like the session behind it."""
    sessions = scoped_session(sessionmaker(engine))

    assert publish_events(sessions, []) == []
    sessions.remove()


@pytest.mark.parametrize("wrong", [None, create_engine("sqlite://"), "postgresql://"])
def test_anything_else_is_a_type_error(wrong: Any) -> None:
    """An engine has no transaction to share, so it is refused by name."""
    with pytest.raises(TypeError, match=type(wrong).__name__):
        publish_event(wrong, {}, event_type="t")


@pytest.mark.parametrize("name", ["insert_event", "insert_events"])
def test_statement_writes_given_columns_and_spares_positions(name: str) -> None:
    """The text of the context is cast to json, and only a known event_id may turn an insert into nothing."""
    statement = query_text(name).partition("INSERT")[2]

    assert re.search(r"event_context( AS text\))? AS json\)", statement)
    assert statement.endswith("ON CONFLICT (event_id) DO NOTHING\n")
    assert "position" not in statement
    assert "recorded_at" not in statement


def counts(rows: list[EventRow]) -> list[int]:
    """Return how many events go with each statement."""
    return [page.event_count for page in steps.pages(rows)]


def test_pages_are_bounded_by_rows_and_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages keep the order, none has too many rows or characters, and one large event has its own."""
    monkeypatch.setattr(steps, "PAGE_ROWS", 3)
    monkeypatch.setattr(steps, "PAGE_CHARACTERS", 40)
    rows = [prepare_event({"a": "x" * size}, event_type="t") for size in (1, 1, 1, 1, 100, 20, 20, 1)]

    sent = [page.statement.parameters["event_id"] or "" for page in steps.pages(rows)]

    assert counts(rows) == [3, 1, 1, 1, 2]
    assert steps.SEPARATOR.join(sent).split(steps.SEPARATOR) == [row.event_id.hex for row in rows]


@pytest.mark.parametrize(
    "odd",
    [{"event_type": "a\x1eb"}, {"environment": "\x1e-"}, {"trace_context": "\x1e"}, {"trace_context": "\x1d"}],
    ids=str,
)
def test_what_cannot_be_joined_goes_alone(odd: dict[str, str]) -> None:
    """A separator in a name or a trace never moves one event's text into another."""
    rows = [prepare_event({"a": "\x1e\x1d"}, event_type="t"), prepare_event({}, **{"event_type": "t", **odd})]

    assert counts(rows[:1] * 2) == [2]
    assert counts(rows) == [1, 1]


def test_calling_a_session_that_is_awaited_is_named() -> None:
    """Whoever calls the function for the other kind of session reads which one to await."""
    session: Any = AsyncSession()

    with pytest.raises(TypeError, match="await publish_event_async"):
        publish_event(session, {}, event_type="t")
    with pytest.raises(TypeError, match="await publish_event_async"):
        publish_events(session, [{}], event_type="t")


def test_awaiting_a_session_that_is_called_is_named(engine: Engine) -> None:
    """And the other way round."""
    with Session(engine) as session, pytest.raises(TypeError, match=r"call 'publish_event\("):
        asyncio.run(publish_event_async(session, {}, event_type="t"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="asyncpg"):
        asyncio.run(publish_events_async(engine, [{}], event_type="t"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        lambda session: publish_event(session, {}, event_type="t", version=2),
        lambda session: publish_event(session, {}, event_type="t", event_ids=[]),
        lambda session: publish_events(session, [{}], event_type="t", event_id=uuid4()),
        lambda session: publish_events(session, [], event_type="t", version=2),
    ],
)
def test_unknown_keyword_is_refused_by_name(engine: Engine, call: Any) -> None:
    """A typing mistake never becomes an event without what was meant."""
    with Session(engine) as session, pytest.raises(TypeError, match=r"^(version|event_ids?) is no keyword"):
        call(session)


@pytest.mark.parametrize("event_ids", [[], [uuid4()] * 3, ["no-uuid", uuid4()]])
def test_event_ids_fit_the_events(engine: Engine, event_ids: list[Any]) -> None:
    """Each event has one id of its own or none has."""
    with Session(engine) as session, pytest.raises(PublishError, match="event_id"):
        publish_events(session, [{}, {}], event_type="t", event_ids=event_ids)


def test_event_id_is_a_uuid_to_everybody_else() -> None:
    """An id that was returned compares, hashes, copies and pickles as the UUID it is."""
    plain = uuid4()
    event_id = EventId(plain, is_repeat=True, differs=True)

    assert (event_id, str(event_id), hash(event_id)) == (plain, str(plain), hash(plain))
    assert isinstance(event_id, UUID)
    assert {type(copied) for copied in (copy.deepcopy(event_id), pickle.loads(pickle.dumps(event_id)))} == {UUID}
    assert pickle.loads(pickle.dumps(event_id)) == plain
