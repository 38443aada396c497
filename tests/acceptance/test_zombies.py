"""A process that was frozen past its lease wakes up, and what it still wanted to do changes nothing."""

from collections.abc import Callable

import pytest
from sqlalchemy import text

from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.points import Point
from outbox_pipeline.stores import Stores
from tests.fixtures.children import PATIENCE_SECONDS, Child, Children, recover
from tests.fixtures.events import assert_each_exactly_once, publish, quarantined_ids
from tests.fixtures.proxy import DELETE, INSERT, Fault, FaultyProxy, through
from tests.fixtures.snapshots import delivered_batches

FENCED = "refused the insert: a later attempt on this batch has begun. Nothing was written."
LOST = "no longer holds batch"


def frozen(child: Child, point: Point) -> Child:
    """Wait until the process is frozen at a point."""
    child.wait_at(point)
    child.wait_frozen()
    return child


def awakened(zombie: Child) -> str:
    """Let a frozen process go on and return the one failure it ends with."""
    zombie.wake()
    (failure,) = zombie.result()["failures"]
    return str(failure)


def overrun_window(stores: Stores) -> None:
    """Let ClickHouse forget every token it has seen: the window is one insert long, and another one has come."""
    publish(stores.engine, 3)
    recover(stores)


def shorten_window(stores: Stores) -> None:
    """Make ClickHouse remember only the latest insert."""
    stores.client.run("ALTER TABLE {table:Identifier} MODIFY SETTING non_replicated_deduplication_window = 1")


def lose_some_rows(stores: Stores) -> None:
    """Take every second row out of ClickHouse by hand."""
    stores.client.run("DELETE FROM {table:Identifier} WHERE position % 2 = 0", settings={"mutations_sync": 2})


def wait_for_silence(stores: Stores) -> None:
    """Wait until the lease of the only batch in flight has run out."""
    expired = text("SELECT bool_and(lease_until < clock_timestamp()) FROM outbox.batch WHERE status = 'delivering'")

    def has_expired() -> bool:
        with stores.engine.begin() as connection:
            return bool(connection.scalar(expired))

    assert wait_until(has_expired, seconds=PATIENCE_SECONDS, pause=0.1)


def test_an_insert_frozen_past_lease_and_window_is_refused(stores: Stores, children: Children) -> None:
    """A process stopped before it sends finds its insert refused, though ClickHouse has forgotten the token."""
    shorten_window(stores)
    publish(stores.engine, 30)
    zombie = frozen(children.start(stores, at=Point.SENDING, how="freeze"), Point.SENDING)

    recover(stores)
    overrun_window(stores)
    failure = awakened(zombie)

    assert_each_exactly_once(stores.engine, stores.client)
    assert FENCED in failure


def test_an_insert_held_in_the_network_is_refused(stores: Stores, children: Children, proxy: FaultyProxy) -> None:
    """A request that left in time and arrives after everything else is refused by ClickHouse itself."""
    shorten_window(stores)
    publish(stores.engine, 30)
    held = proxy.inject(Fault.HOLD_REQUEST, INSERT)
    zombie = children.start(stores, settings=through(proxy, stores.settings))
    held.wait_reached()
    # A process that waits for an answer is alive and keeps its lease; one that is frozen as well loses it.
    zombie.freeze()

    recover(stores)
    overrun_window(stores)
    held.release()
    failure = awakened(zombie)

    assert_each_exactly_once(stores.engine, stores.client)
    assert FENCED in failure


def test_a_repair_frozen_before_its_delete_takes_nothing(stores: Stores, children: Children) -> None:
    """The delete of a process that was overtaken finds only older rows than those the other one has put there."""
    delivered_batches(stores, (30,))
    lose_some_rows(stores)
    zombie = frozen(children.start(stores, at=Point.SENDING, how="freeze", nth=2, redeliver=True), Point.SENDING)

    recover(stores)
    failure = awakened(zombie)

    assert_each_exactly_once(stores.engine, stores.client)
    assert FENCED in failure


def test_a_delete_held_in_the_network_takes_nothing(stores: Stores, children: Children, proxy: FaultyProxy) -> None:
    """A delete that arrives after the batch was repaired by another process leaves that process's rows alone."""
    delivered_batches(stores, (30,))
    lose_some_rows(stores)
    held = proxy.inject(Fault.HOLD_REQUEST, DELETE)
    zombie = children.start(stores, settings=through(proxy, stores.settings), redeliver=True)
    held.wait_reached()
    zombie.freeze()

    recover(stores)
    held.release()

    assert_each_exactly_once(stores.engine, stores.client)
    assert FENCED in awakened(zombie)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_repair_frozen_behind_its_delete_adds_nothing(stores: Stores, children: Children) -> None:
    """A repair stopped between delete and insert is finished by another process and refused when it wakes."""
    shorten_window(stores)
    publish(stores.engine, 30)
    relay(stores)
    lose_some_rows(stores)
    zombie = frozen(children.start(stores, at=Point.OLDER_DELETED, how="freeze", redeliver=True), Point.OLDER_DELETED)

    recover(stores)
    overrun_window(stores)
    failure = awakened(zombie)

    assert_each_exactly_once(stores.engine, stores.client)
    assert FENCED in failure


@pytest.mark.parametrize("point", [Point.VALIDATED, Point.PROVEN])
def test_the_ledger_refuses_a_process_that_was_overtaken(stores: Stores, children: Children, point: Point) -> None:
    """Freezing a batch's content and marking it are refused once another process has done it."""
    publish(stores.engine, 30)
    zombie = frozen(children.start(stores, at=point, how="freeze"), point)

    recover(stores)
    failure = awakened(zombie)

    assert_each_exactly_once(stores.engine, stores.client)
    assert LOST in failure


def test_a_deploy_while_a_process_is_frozen_changes_nothing(stores: Stores, children: Children) -> None:
    """What the later process rejected under newer rules stays rejected when the earlier one wakes up with its own."""
    publish(stores.engine, 10)
    publish(stores.engine, 5, context='{"much": "too long"}')
    zombie = frozen(children.start(stores, at=Point.VALIDATED, how="freeze"), Point.VALIDATED)
    stricter = stores.settings.model_copy(update={"context_max_bytes": 10})

    recover(Stores(stores.engine, stores.client, stricter))
    failure = awakened(zombie)

    assert_each_exactly_once(stores.engine, stores.client)
    assert LOST in failure
    assert len(quarantined_ids(stores.engine)) == 5


def about_to_mark(stores: Stores, children: Children) -> Child:
    """A process that has seen the proof and is stopped before it marks."""
    return frozen(children.start(stores, at=Point.PROVEN, how="freeze"), Point.PROVEN)


def about_to_raise(stores: Stores, children: Children) -> Child:
    """A process that has sent the same generation in vain and is stopped before it raises the generation."""
    relay(stores)
    lose_some_rows(stores)
    return frozen(children.start(stores, at=Point.SENT, how="freeze", redeliver=True), Point.SENT)


@pytest.mark.parametrize("make_zombie", [about_to_mark, about_to_raise])
def test_two_processes_awake_on_one_batch(
    stores: Stores, children: Children, make_zombie: Callable[[Stores, Children], Child]
) -> None:
    """While another process is in the middle of the batch, an overtaken one can neither mark it nor raise it."""
    publish(stores.engine, 30)
    zombie = make_zombie(stores, children)
    wait_for_silence(stores)
    lose_some_rows(stores)
    second = children.start(stores, at=Point.FENCED, how="wait")
    second.wait_at(Point.FENCED)

    failure = awakened(zombie)
    second.go_on()
    second_failures = second.result()["failures"]

    assert_each_exactly_once(stores.engine, stores.client)
    assert LOST in failure
    assert second_failures == []


def test_a_process_frozen_in_a_transaction_holds_nobody_up(stores: Stores, children: Children) -> None:
    """A process stopped with the ledger's row locked loses its session, and then its batch, to the others."""
    publish(stores.engine, 30)
    zombie = frozen(children.start(stores, at=Point.MARKING, how="freeze"), Point.MARKING)

    recover(stores)
    failure = awakened(zombie)

    assert "idle-in-transaction timeout" in failure
    assert_each_exactly_once(stores.engine, stores.client)
