"""What all hosts have of the database's: its one lock, which a host may take away with it, and its clock."""

import time
from collections.abc import Iterator

import pytest

from outbox_pipeline.postgres.session import IDLE_TIMEOUT_SECONDS
from outbox_pipeline.relay.points import Point
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish
from tests.fixtures.hosts import SOON_SECONDS, Hosts, Worker, batch_of, hold_at, rows_of
from tests.fixtures.instances import assert_whole

pytestmark = pytest.mark.hosts


@pytest.fixture
def control(hosts: Hosts, environment: dict[str, str]) -> Iterator[Worker]:
    """A host that cuts batches, as the sensor's does."""
    worker = Worker(hosts.control, environment)
    worker.wait_ready()
    yield worker
    worker.close()


def test_a_host_that_loses_the_database_while_it_cuts_lets_others_cut(
    hosts: Hosts, stores: Stores, workers: tuple[Worker, Worker], control: Worker
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
