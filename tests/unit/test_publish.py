"""Publishing without a server: what it writes through, what it refuses, and how little it imports."""

import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox_pipeline import NoTransactionError, PublishError, publish, publish_event, publish_events
from outbox_pipeline.events import prepare_event
from outbox_pipeline.publish import insert_events


@pytest.fixture
def engine() -> Engine:
    """Return an engine that has no outbox: whatever reaches it as a statement fails."""
    return create_engine("sqlite://")


def test_import_is_light() -> None:
    """An application that publishes loads neither Dagster nor pandas nor Arrow nor a ClickHouse client."""
    program = (
        "import sys; from outbox_pipeline import *; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=_root())

    assert "sqlalchemy" in loaded.stdout.split()
    assert not {"dagster", "pandas", "pyarrow", "clickhouse_connect", "pandera", "psycopg"} & set(loaded.stdout.split())


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


def test_statement_writes_given_columns_and_spares_positions() -> None:
    """The text of the context is cast to json, and only a known event_id may turn an insert into nothing."""
    statement = str(publish._insert_page().compile(dialect=postgresql.dialect()))

    assert "CAST(page.event_context AS JSON)" in statement
    assert statement.endswith("ON CONFLICT (event_id) DO NOTHING")
    assert "position" not in statement
    assert "recorded_at" not in statement


def test_pages_are_bounded_by_rows_and_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages keep the order, none has too many rows or characters, and one large event has its own."""
    monkeypatch.setattr(publish, "PAGE_ROWS", 3)
    monkeypatch.setattr(publish, "PAGE_CHARACTERS", 40)
    rows = [prepare_event({"a": "x" * size}, event_type="t") for size in (1, 1, 1, 1, 100, 20, 20, 1)]

    pages = list(publish._pages(rows))

    assert [len(page) for page in pages] == [3, 1, 1, 1, 2]
    assert [row for page in pages for row in page] == rows
