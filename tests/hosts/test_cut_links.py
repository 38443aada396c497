"""Links that are cut while a batch is delivered: another host takes it over, and the first one writes nothing more."""

import time

import pytest

from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.points import Point
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish, publish_sized
from tests.fixtures.hosts import LEASE_SECONDS, SOON_SECONDS, Worker, batch_of, hold_at, rows_of
from tests.fixtures.instances import assert_whole

pytestmark = pytest.mark.hosts

Workers = tuple[Worker, Worker]


def is_processed(stores: Stores) -> bool:
    """Tell whether the batch is marked."""
    return batch_of(stores)[1] == "processed"


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
