"""Links that are cut while a batch is delivered: another host takes it over, and the first one writes nothing more."""

import time
from collections.abc import Iterator
from uuid import UUID

import pytest
from sqlalchemy import text

from outbox_pipeline.postgres.session import IDLE_TIMEOUT_SECONDS
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.points import Point
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish, publish_sized
from tests.fixtures.hosts import LEASE_SECONDS, Hosts, Worker
from tests.fixtures.instances import assert_whole

pytestmark = pytest.mark.hosts

#: What a takeover may take once the lease is over, on a machine that does other things too.
SOON_SECONDS = 10

Workers = tuple[Worker, Worker]


def batch_of(stores: Stores) -> tuple[UUID, str, int, int]:
    """Return id, status, attempt and generation of the one batch."""
    with stores.engine.begin() as connection:
        return tuple(connection.execute(text("SELECT batch_id, status, attempt, generation FROM outbox.batch")).one())


def rows_of(stores: Stores) -> int:
    """Return how many rows ClickHouse has."""
    (row,) = stores.client.rows("SELECT count() AS found FROM {table:Identifier}")
    return int(row["found"])


def is_processed(stores: Stores) -> bool:
    """Tell whether the batch is marked."""
    return batch_of(stores)[1] == "processed"


def hold_at(worker: Worker, place: str) -> None:
    """Let a worker begin to deliver what is pending, and hold it at a place."""
    worker.begin("relay", "--until-empty", hold=place)
    worker.wait_held()


def takes_over(other: Worker, stores: Stores) -> float:
    """Let the other worker deliver, and return how long after now that was done."""
    began = time.monotonic()
    other.take_over(lambda: is_processed(stores), "the other host to take over")
    return time.monotonic() - began


#: What the ledger says of an attempt that is over, and ClickHouse of its insert.
BY_LEDGER = "the ledger is at attempt 2, processed. Nothing was written by it."
BY_CLICKHOUSE = "refused the insert: a later attempt on this batch has begun. Nothing was written."
#: It has given the rest of its body up.
BY_CONNECTION = "The connection to ClickHouse broke"
#: The database has ended the transaction that waited for its host.
BY_DATABASE = "server closed the connection unexpectedly"


def assert_old_holder_has_ended(worker: Worker, *sentences: str) -> None:
    """Check that a worker whose batch was taken over has delivered nothing and says so, in one of these sentences."""
    code, said = worker.ended()
    said = " ".join(said.split())
    assert (code, "delivered 0, quarantined 0" in said) == (1, True), said
    assert any(sentence in said for sentence in sentences), said


@pytest.mark.parametrize(
    ("place", "sentences"),
    [
        (Point.SENDING, (BY_LEDGER, BY_CLICKHOUSE)),
        (Point.SENT, (BY_LEDGER,)),
        (Point.MARKING, (BY_LEDGER, BY_DATABASE)),
    ],
    ids=["before-the-insert", "before-the-proof", "in-the-transaction-of-the-mark"],
)
def test_a_host_that_is_cut_off_is_taken_over(
    stores: Stores, workers: Workers, place: Point, sentences: tuple[str, ...]
) -> None:
    """Wherever its link is cut, its batch is delivered by another one when the lease is over, and once."""
    first, second = workers
    publish(stores.engine, 300)
    hold_at(first, place)
    first.host.unplug()
    first.go_on()

    lasted = takes_over(second, stores)

    assert lasted < LEASE_SECONDS + SOON_SECONDS, lasted
    assert rows_of(stores) == 300
    assert batch_of(stores)[1:] == ("processed", 2, 0)
    first.host.plug()
    assert_old_holder_has_ended(first, *sentences)
    assert_whole(stores)


def test_a_host_that_is_cut_off_within_its_insert_is_taken_over(stores: Stores, workers: Workers) -> None:
    """What ClickHouse has got of the body is no row, and what comes of it once the link is back is refused."""
    first, second = workers
    publish_sized(stores.engine, 20_000)
    hold_at(first, Point.SENDING)
    first.host.send_slowly(megabits=4)
    before = first.host.sent_bytes()
    first.go_on()
    # A third of the body.
    assert wait_until(lambda: first.host.sent_bytes() - before > 800_000, seconds=60, pause=0.02)
    first.host.unplug()
    assert rows_of(stores) == 0

    lasted = takes_over(second, stores)

    assert lasted < LEASE_SECONDS + SOON_SECONDS, lasted
    first.host.send_at_once()
    first.host.plug()
    assert_old_holder_has_ended(first, BY_LEDGER, BY_CLICKHOUSE, BY_CONNECTION)
    assert rows_of(stores) == 20_000
    assert_whole(stores)


def test_a_host_that_never_comes_back_holds_nothing_up(stores: Stores, workers: Workers) -> None:
    """Its batch and all later ones are delivered by the others."""
    first, second = workers
    publish(stores.engine, 300)
    hold_at(first, Point.SENT)
    first.host.unplug()
    first.go_on()
    takes_over(second, stores)

    publish(stores.engine, 200)
    code, said = second.outbox("relay", "--until-empty")

    assert code == 0, said
    assert_whole(stores)


@pytest.fixture
def control(hosts: Hosts, environment: dict[str, str]) -> Iterator[Worker]:
    """A host that cuts batches, as the sensor's does."""
    worker = Worker(hosts.control, environment)
    worker.wait_ready()
    yield worker
    worker.close()


def test_a_host_that_loses_the_database_while_it_cuts_lets_others_cut(
    hosts: Hosts, stores: Stores, workers: Workers, control: Worker
) -> None:
    """The database gives back the one lock of the ledger: others go on in half a minute, and publishing at once."""
    publish(stores.engine, 300)
    hold_at(control, "UPDATE outbox.unclaimed")
    control.host.lose(hosts.database)
    began = time.monotonic()
    control.go_on()
    publish(stores.engine, 200)
    assert time.monotonic() - began < SOON_SECONDS

    workers[0].take_over(lambda: rows_of(stores) == 500, "another host to cut and deliver")

    assert time.monotonic() - began < IDLE_TIMEOUT_SECONDS + SOON_SECONDS
    control.host.find(hosts.database)
    code, said = control.ended()
    assert code == 1, said
    assert control.outbox("relay", "--until-empty")[0] == 0
    assert_whole(stores)


@pytest.mark.parametrize("ahead", ["holder", "other"])
def test_a_clock_that_is_ahead_takes_nothing_over(
    hosts: Hosts, stores: Stores, environment: dict[str, str], ahead: str
) -> None:
    """A lease is over when the database's clock says so, whatever the clocks of the hosts are."""
    clocks = {"holder": None, "other": None} | {ahead: "+20s"}
    holder, other = (
        Worker(host, environment, clock=clock) for host, clock in zip(hosts.workers, clocks.values(), strict=True)
    )
    try:
        said = {"holder": holder.wait_ready(), "other": other.wait_ready()}
        assert said[ahead] - time.time() > 15
        publish(stores.engine, 300)
        hold_at(holder, Point.SENDING)

        code, printed = other.outbox("relay", "--until-empty")

        assert (code, rows_of(stores)) == (0, 0), printed
        holder.go_on()
        assert holder.ended()[0] == 0
        assert batch_of(stores)[1:] == ("processed", 1, 0)
        assert_whole(stores)
    finally:
        holder.close()
        other.close()
