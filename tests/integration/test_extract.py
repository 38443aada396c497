"""Reading batches keeps its connection, which holds nothing between them and survives the loss of its session."""

from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.settings import Settings
from tests.fixtures.events import publish

Sessions = Callable[[str], list[object]]


@pytest.fixture
def batch_id(outbox_engine: Engine) -> UUID:
    """A batch of three events."""
    publish(outbox_engine, 3)
    return cut_batches(outbox_engine, Settings(), limit=1).batches[0].batch_id


@pytest.fixture
def reader(outbox_engine: Engine) -> Iterator[Engine]:
    """An engine that itself keeps no connection."""
    engine = create_engine(outbox_engine.url, poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(outbox_engine: Engine) -> Sessions:
    """Return a function that shows something of each session that began after this."""
    with outbox_engine.begin() as connection:
        since = connection.scalar(text("SELECT clock_timestamp()"))
    outbox_engine.dispose()

    def show(what: str) -> list[object]:
        statement = text(
            f"SELECT {what} FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_start > :since"
        )
        with outbox_engine.begin() as connection:
            return list(connection.execute(statement, {"since": since}).scalars())

    return show


def test_batches_are_read_over_one_connection(reader: Engine, batch_id: UUID, sessions: Sessions) -> None:
    """A second batch needs no second session; in between the first one is in no transaction."""
    extract_events(reader, batch_id)
    before = sessions("pid")

    extract_events(reader, batch_id)

    assert len(before) == 1
    assert sessions("pid") == before
    assert sessions("state") == ["idle"]


def test_a_session_that_has_ended_is_replaced(reader: Engine, batch_id: UUID, sessions: Sessions) -> None:
    """After a restart of PostgreSQL the next batch is read as if nothing had been."""
    first = extract_events(reader, batch_id)
    assert sessions("pg_terminate_backend(pid)") == [True]

    assert extract_events(reader, batch_id) == first


def test_a_disposed_engine_leaves_no_session(reader: Engine, batch_id: UUID, sessions: Sessions) -> None:
    """Whoever closes the stores has closed everything."""
    extract_events(reader, batch_id)

    reader.dispose()

    assert wait_until(lambda: not sessions("pid"), seconds=10)
