"""Kill -9 of ClickHouse or PostgreSQL in the middle of a delivery: recovered by the normal loop, exactly once."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, text

from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.embedded.clickhouse import running_clickhouse, start_clickhouse
from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.embedded.homes import Home, locked
from outbox_pipeline.embedded.postgres import running_postgres, start_postgres
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.postgres.schema import migrate
from outbox_pipeline.processes import ProcessIdentity, wait_until
from outbox_pipeline.relay.points import Point
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.children import Child, Children, recover
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.proxy import Fault, FaultyProxy, through

pytestmark = pytest.mark.embedded_only


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A folder of engines that this module may kill."""
    return Home(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def stores(home: Home) -> Iterator[Stores]:
    """Both stores on engines of this module; every test leaves them running and everything delivered."""
    with embedded_engines(home.path) as urls:
        assert urls.postgres
        assert urls.clickhouse
        settings = Settings(
            postgres_url=SecretStr(urls.postgres),
            clickhouse_url=SecretStr(urls.clickhouse),
            lease_seconds=2,
            request_seconds=5,
            retry_base_seconds=0.1,
            retry_max_seconds=1,
        )
        engine = create_outbox_engine(settings)
        migrate(engine)
        client = open_client(settings)
        create_table(client)
        yield Stores(engine, client, settings)
        client.close()
        engine.dispose()


def kill(process: ProcessIdentity) -> None:
    """Kill a server as a lack of memory would, and wait until it is gone."""
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not process.is_alive(), seconds=10)


def kill_clickhouse(home: Home) -> None:
    """Kill -9 the ClickHouse of the home."""
    handle = running_clickhouse(home)
    assert handle is not None
    kill(handle.process)


def kill_postgres(home: Home) -> None:
    """Kill -9 the PostgreSQL of the home."""
    handle = running_postgres(home)
    assert handle is not None
    kill(handle.process)


def restart(home: Home) -> None:
    """Start what is dead again on the same data and under the same addresses."""
    with locked(home):
        start_postgres(home)
        start_clickhouse(home)


def failure_of(child: Child) -> str:
    """Return the one sentence a process ends with."""
    (failure,) = child.result()["failures"]
    assert "\n" not in failure
    return str(failure)


def is_waiting(connection: Connection) -> bool:
    """Tell whether a session waits for a lock that another one holds."""
    return bool(connection.scalar(text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")))


def test_clickhouse_dies_before_an_insert(home: Home, stores: Stores, children: Children) -> None:
    """The insert finds nobody: the attempt fails with a sentence and the next one delivers."""
    publish(stores.engine, 1000)
    child = children.start(stores, at=Point.SENDING, how="wait")
    child.wait_at(Point.SENDING)

    kill_clickhouse(home)
    child.go_on()
    failure = failure_of(child)
    restart(home)
    recover(stores)

    # Refused, or reset when the connection of its last request was still open.
    assert "ClickHouse" in failure
    assert_each_exactly_once(stores.engine, stores.client)


@pytest.mark.parametrize("fault", [Fault.HOLD_BODY, Fault.HOLD_ANSWER])
def test_clickhouse_dies_during_an_insert(home: Home, stores: Stores, children: Children, fault: Fault) -> None:
    """With half of the body read, or all committed and not yet answered, the next attempt finds what is there."""
    assert stores.settings.clickhouse_url is not None
    proxy = FaultyProxy.to(stores.settings.clickhouse_url.get_secret_value())
    publish(stores.engine, 1000)
    held = proxy.inject(fault)
    child = children.start(stores, settings=through(proxy, stores.settings))
    held.wait_reached()

    kill_clickhouse(home)
    proxy.close()
    failure = failure_of(child)
    restart(home)
    recover(stores)

    assert "ClickHouse" in failure
    assert_each_exactly_once(stores.engine, stores.client)


def test_clickhouse_dies_while_it_writes(home: Home, stores: Stores, children: Children) -> None:
    """Killed at no particular moment of a large insert, ClickHouse keeps all of it or nothing that counts."""
    publish(stores.engine, 100_000)
    child = children.start(stores, at=Point.SENDING, how="wait")
    child.wait_at(Point.SENDING)
    child.go_on()
    assert wait_until(lambda: has_begun(home), seconds=30, pause=0.001)

    kill_clickhouse(home)
    child.result()
    restart(home)
    recover(stores)

    assert_each_exactly_once(stores.engine, stores.client)


def has_begun(home: Home) -> bool:
    """Tell whether a temporary part of an insert lies in ClickHouse's data."""
    return any(home.clickhouse_data.glob("store/*/*/tmp_insert_*"))


def lock_unclaimed(connection: Connection) -> None:
    """Make the next cut wait in the middle of its transaction."""
    connection.execute(text("SELECT FROM outbox.unclaimed FOR UPDATE"))


def lock_events(connection: Connection) -> None:
    """Make the next reading of events wait."""
    connection.execute(text("LOCK TABLE outbox.event IN ACCESS EXCLUSIVE MODE"))


@pytest.mark.parametrize(("point", "lock"), [(None, lock_unclaimed), (Point.LEASED, lock_events)])
def test_postgres_dies_during_claim_and_extract(
    home: Home, stores: Stores, children: Children, point: Point | None, lock: Callable[[Connection], None]
) -> None:
    """The process that was claiming or reading ends with a sentence, and its work is done by the next."""
    publish(stores.engine, 100)
    child = children.start(stores, at=point, how="wait") if point else None
    if child is not None and point is not None:
        child.wait_at(point)
    with stores.engine.connect() as holder:
        lock(holder)
        child = child or children.start(stores)
        child.go_on()
        with stores.engine.connect() as watcher:
            assert wait_until(lambda: is_waiting(watcher), seconds=30)

        kill_postgres(home)
        failure = failure_of(child)
        holder.invalidate()
    restart(home)
    recover(stores)

    assert "PostgreSQL" in failure
    assert_each_exactly_once(stores.engine, stores.client)


def test_postgres_dies_during_a_mark(home: Home, stores: Stores, children: Children) -> None:
    """A mark whose commit never came is undone by PostgreSQL; the next attempt finds the rows and marks."""
    publish(stores.engine, 100)
    child = children.start(stores, at=Point.MARKING, how="wait")
    child.wait_at(Point.MARKING)

    kill_postgres(home)
    child.go_on()
    failure = failure_of(child)
    restart(home)
    recover(stores)

    assert "PostgreSQL" in failure
    assert_each_exactly_once(stores.engine, stores.client)
