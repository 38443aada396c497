"""Producers do as they like with their transactions; each event that committed arrives once, and no other."""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.embedded.homes import Home, locked
from outbox_pipeline.embedded.postgres import running_postgres, start_postgres
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.postgres.schema import migrate
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish, publish_in

_PREPARED = ("commit", "roll back", "commit", "roll back")


@pytest.fixture
def producers(postgres_url: str) -> Iterator[Engine]:
    """An engine with room for many transactions that stay open."""
    engine = create_engine(postgres_url, pool_size=20, pool_pre_ping=True)
    yield engine
    engine.dispose()


@pytest.fixture
def two_phase(producers: Engine) -> Engine:
    """The producers' engine, on a server that lets transactions be prepared."""
    with producers.begin() as connection:
        if connection.scalar(text("SHOW max_prepared_transactions")) == "0":
            pytest.skip("this server allows no prepared transactions: max_prepared_transactions is 0")
    return producers


def ledger_sets(engine: Engine) -> tuple[str, list[str]]:
    """Return the unclaimed positions and all holders of gaps."""
    with engine.begin() as connection:
        unclaimed = connection.scalar(text("SELECT positions::text FROM outbox.unclaimed"))
        holders = connection.execute(text("SELECT DISTINCT unnest(holders) FROM outbox.gap")).scalars()
        return str(unclaimed), sorted(holders)


def assert_ledger_is_small(engine: Engine) -> None:
    """Check that nothing is left of what was open: one range of positions to come, no gap."""
    cut_batches(engine, Settings(), limit=1)
    with engine.begin() as connection:
        last = connection.scalar(text("SELECT pg_sequence_last_value('outbox.event_position_seq')"))
        ahead = connection.scalar(text("SELECT upper(multirange(range_merge(positions))) FROM outbox.unclaimed"))
    unclaimed, holders = ledger_sets(engine)
    assert ahead is None
    assert unclaimed.count("[") == 1, unclaimed
    assert int(unclaimed.removeprefix("{[").partition(",")[0]) <= (last or 0) + 1
    assert holders == []


@contextmanager
def counted_statements(engine: Engine) -> Iterator[list[str]]:
    """Collect the statements that the engine executes inside the block."""
    seen: list[str] = []

    def before(_c: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", before)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", before)


def prepare(engine: Engine, name: str, count: int = 2) -> list[UUID]:
    """Publish in a transaction and leave it prepared under this name."""
    with engine.connect() as connection:
        ids = publish_in(connection, count)
        connection.exec_driver_sql(f"PREPARE TRANSACTION '{name}'")
        connection.rollback()
    return ids


def finish(engine: Engine, name: str, how: str) -> None:
    """Commit or roll back a prepared transaction."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"{'COMMIT' if how == 'commit' else 'ROLLBACK'} PREPARED '{name}'")


def test_transactions_that_commit_in_any_order_are_delivered(stores: Stores, producers: Engine) -> None:
    """Ten transactions publish in one order and commit in another, with a delivery after each commit."""
    open_ones = [producers.connect() for _ in range(10)]
    expected = [event_id for connection in open_ones for event_id in publish_in(connection, 2)]
    random.Random(7).shuffle(open_ones)

    for number, connection in enumerate(open_ones, start=1):
        connection.commit()
        relay(stores, until_empty=True)
        assert stores.client.rows("SELECT count() AS n FROM {table:Identifier}") == [{"n": 2 * number}]

    assert_each_exactly_once(stores.engine, stores.client, expected)
    assert_ledger_is_small(stores.engine)


def test_what_a_savepoint_takes_back_never_arrives(stores: Stores, producers: Engine) -> None:
    """Of nested savepoints only what was not rolled back arrives, though cuts passed over all of it."""
    with producers.connect() as slow:
        expected = publish_in(slow)
        with slow.begin_nested() as outer:
            publish_in(slow, 2)
            with slow.begin_nested():
                publish_in(slow, 3)
            expected += publish(producers)
            relay(stores, until_empty=True)
            outer.rollback()
        with slow.begin_nested():
            expected += publish_in(slow, 4)
        relay(stores, until_empty=True)
        slow.commit()
    relay(stores, until_empty=True)

    assert_each_exactly_once(stores.engine, stores.client, expected)
    assert_ledger_is_small(stores.engine)


def test_prepared_transactions_are_waited_for(stores: Stores, two_phase: Engine) -> None:
    """Transactions left prepared over several cuts arrive when committed and vanish when rolled back."""
    names = [f"outbox_{uuid4().hex}" for _ in _PREPARED]
    prepared = [prepare(two_phase, name) for name in names]
    expected = publish(two_phase, 3)
    relay(stores, until_empty=True)

    for name, how, ids in zip(names, _PREPARED, prepared, strict=True):
        assert ledger_sets(stores.engine)[1] != [], "the gap waits for its prepared transactions"
        finish(two_phase, name, how)
        relay(stores, until_empty=True)
        expected += ids if how == "commit" else []
        assert_each_exactly_once(stores.engine, stores.client, expected)

    assert_ledger_is_small(stores.engine)


def test_one_transaction_open_all_the_time_holds_nobody_up(stores: Stores, producers: Engine) -> None:
    """While one transaction has published and stays open, thousands of others are delivered; its event comes last."""
    expected: list[UUID] = []
    with producers.connect() as open_all_the_time:
        own = publish_in(open_all_the_time)
        for _ in range(20):
            expected += publish(producers, 100)
            with producers.connect() as rolled_back:
                publish_in(rolled_back, 5)
            expected += publish(producers, 1)
            relay(stores, until_empty=True)
            assert stores.client.rows("SELECT count() AS n FROM {table:Identifier}") == [{"n": len(expected)}]
        with producers.begin() as connection:
            still_open = connection.scalar(text("SELECT sum(upper(r) - lower(r)) FROM outbox.gap, unnest(positions) r"))
        open_all_the_time.commit()

    relay(stores, until_empty=True)

    # Who was rolled back while it was open cannot be told from it yet: its own position, and 20 times 5.
    assert still_open == 101
    assert_each_exactly_once(stores.engine, stores.client, expected + own)
    assert_ledger_is_small(stores.engine)


def test_a_rolled_back_bulk_insert_costs_nothing(stores: Stores, producers: Engine) -> None:
    """200,000 positions that were burnt leave one gap, no more statements than an ordinary cut, and then nothing."""
    expected = publish(producers, 10)
    with counted_statements(stores.engine) as ordinary:
        cut_batches(stores.engine, stores.settings, limit=1)
    with producers.connect() as bulk:
        bulk.execute(
            text(
                "INSERT INTO outbox.event (event_type, environment, event_context)"
                " SELECT 't', 'test', '{}' FROM generate_series(1, 200000)"
            )
        )
        expected += publish(producers, 10)
        with counted_statements(stores.engine) as passing:
            cut_batches(stores.engine, stores.settings, limit=1)
        sets = ledger_sets(stores.engine)
    expected += publish(producers, 10)
    with counted_statements(stores.engine) as settling:
        cut_batches(stores.engine, stores.settings, limit=1)
    relay(stores, until_empty=True)

    assert len(passing) == len(ordinary)
    assert len(settling) == len(ordinary) + 1, "one statement settles the gap, however many positions it has"
    assert sets[0] == "{[200021,)}"
    assert len(sets[1]) == 1
    assert_each_exactly_once(stores.engine, stores.client, expected)
    assert_ledger_is_small(stores.engine)


def test_producers_that_are_terminated_leave_nothing(stores: Stores, producers: Engine) -> None:
    """Backends ended at random take their events with them; everybody else's arrive."""
    chance = random.Random(11)
    expected: list[UUID] = []
    for _ in range(10):
        open_ones = [producers.connect() for _ in range(4)]
        published = [publish_in(connection, chance.randint(1, 3)) for connection in open_ones]
        victims = set(chance.sample(range(4), 2))
        terminate(producers, [open_ones[number] for number in victims])
        relay(stores, until_empty=True)
        for number, connection in enumerate(open_ones):
            expected += [] if number in victims else published[number]
            assert commits(connection) == (number not in victims)
    relay(stores, until_empty=True)

    assert len(expected) > 0
    assert_each_exactly_once(stores.engine, stores.client, expected)
    assert_ledger_is_small(stores.engine)


def terminate(engine: Engine, victims: list[Connection]) -> None:
    """End the backends of these connections and wait until they are gone."""
    pids = [victim.connection.dbapi_connection.info.backend_pid for victim in victims]  # type: ignore[union-attr]
    with engine.begin() as connection:
        for pid in pids:
            assert connection.scalar(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})


def commits(connection: Connection) -> bool:
    """Commit and give the connection back; False when its server process is gone."""
    try:
        connection.commit()
    except DBAPIError:
        connection.invalidate()
        return False
    finally:
        connection.close()
    return True


@pytest.mark.embedded_only
@pytest.mark.parametrize("how", ["commit", "roll back"])
def test_a_prepared_transaction_survives_the_crash_of_postgres(tmp_path: Path, how: str) -> None:
    """After a kill of PostgreSQL the prepared transaction holds its gap under another name, until it is finished."""
    home = Home((tmp_path / "home").resolve())
    with embedded_engines(home.path, clickhouse=False) as urls:
        assert urls.postgres is not None
        engine = create_outbox_engine(Settings(postgres_url=SecretStr(urls.postgres)))
        migrate(engine)
        prepared = prepare(engine, "outbox_prepared")
        expected = publish(engine, 2)
        cut_batches(engine, Settings(), limit=1)
        before = ledger_sets(engine)[1]
        kill_and_start(home)

        first = cut_batches(engine, Settings(), limit=1)
        after = ledger_sets(engine)[1]
        finish(engine, "outbox_prepared", how)
        second = cut_batches(engine, Settings(), limit=1)
        unclaimed = ledger_sets(engine)
        with engine.begin() as connection:
            in_batches = connection.execute(
                text("SELECT event_id FROM outbox.event JOIN outbox.batch ON batch.positions @> event.position")
            ).scalars()
            found = list(in_batches)
        engine.dispose()

    assert [name.startswith("-1/") for name in before] == [False]
    assert [name.startswith("-1/") for name in after] == [True]
    assert first.event_count == 0
    assert second.event_count == (2 if how == "commit" else 0)
    assert sorted(found) == sorted(expected + (prepared if how == "commit" else []))
    assert unclaimed == ("{[5,)}", [])


def kill_and_start(home: Home) -> None:
    """Kill the postmaster as the kernel does when memory is short, and start PostgreSQL again."""
    with locked(home):
        handle = running_postgres(home)
        assert handle is not None
        os.kill(handle.pid, signal.SIGKILL)
        assert wait_until(lambda: not handle.process.is_alive(), seconds=30)
        start_postgres(home)
