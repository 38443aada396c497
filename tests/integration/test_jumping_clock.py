"""PostgreSQL's clock jumps in the middle of everything, and everything is delivered once it is right again."""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count

import pytest

from outbox_pipeline.clickhouse.completeness import read_delivered
from outbox_pipeline.errors import ConfigurationError, LeaseLostError, TransientError
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.orchestration.partitions import deliverable_days, nearest_day
from outbox_pipeline.relay.attempts import end_failed, start_requested
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.relay.tick import Tick, plan_tick
from outbox_pipeline.stores import Stores
from tests.fixtures.clock import Clock
from tests.fixtures.events import assert_each_exactly_once, committed_ids, publish
from tests.fixtures.snapshots import delivered_batches

JUMPS = [400, 2, -2]


def tick(stores: Stores) -> Tick:
    """Look as the sensor does; a batch has up to ten events."""
    settings = stores.settings.model_copy(update={"batch_max_events": 10})
    return plan_tick(stores.engine, settings, days=deliverable_days())


@pytest.mark.parametrize("by", JUMPS)
def test_what_was_cut_under_a_wrong_clock_is_delivered_under_the_right_one(
    stores: Stores, clock: Clock, by: int
) -> None:
    """Batches of a day that has not come, and requests that end then, hold nothing up; by ticks, as Dagster does."""
    publish(stores.engine, 3)
    clock.jump(by)
    publish(stores.engine, 10)
    lost = tick(stores).requests
    clock.jump(0)
    publish(stores.engine, 5)

    partitions = set()
    for _ in count():
        requests = tick(stores).requests
        for request in requests:
            deliver(start_requested(stores, request.batch_id, request.attempt))
            partitions.add(nearest_day(request.recorded_on))
        if not requests:
            break

    first, last = deliverable_days()
    assert len(lost) > 1
    assert all(first <= day <= last for day in partitions)
    assert_each_exactly_once(stores.engine, stores.client)
    assert len(committed_ids(stores.engine)) == 18


@pytest.mark.parametrize("by", JUMPS)
def test_a_clock_that_jumps_during_deliveries_loses_and_doubles_nothing(stores: Stores, clock: Clock, by: int) -> None:
    """One attempt has failed, one has died, one goes on: all is delivered at once, without waiting for a lease."""
    # Leases so long that no heartbeat comes in between.
    stores = replace(stores, settings=stores.settings.model_copy(update={"lease_seconds": 3600}))
    publish(stores.engine, 30)
    failing, dying, lasting = (
        start_requested(stores, request.batch_id, request.attempt) for request in tick(stores).requests
    )
    lasting.prepare()
    clock.jump(by)
    dying.close()
    with suppress(LeaseLostError):
        end_failed(failing, ConfigurationError("no table"))
    publish(stores.engine, 7)
    ahead = relay(stores, until_empty=True)
    clock.jump(0)
    with suppress(LeaseLostError):
        lasting.finish()
    lasting.close()
    right = relay(stores, until_empty=True)

    assert (ahead.failures, right.failures) == ((), ())
    assert_each_exactly_once(stores.engine, stores.client)
    assert len(committed_ids(stores.engine)) == 37


def test_while_the_clock_is_ahead_nothing_is_called_complete_or_old(stores: Stores, clock: Clock) -> None:
    """No day is told, no event pruned, and the doctor names the clock and later the days that have not come."""
    delivered_batches(stores, (4,))
    before = record_completeness(stores)
    clock.jump(400)
    publish(stores.engine, 4)
    relay(stores, until_empty=True)
    with pytest.raises(TransientError, match=r"PostgreSQL's clock shows .* let NTP set the one that is wrong"):
        record_completeness(stores)
    told = read_delivered(stores.client)
    pruned = prune(stores)
    found = {check.name: check for check in examine(stores.settings)}
    clock.jump(0)
    after = record_completeness(stores)

    assert {day.written_at for day in told} == {before.written_at}
    assert (pruned.batches, pruned.events) == (0, 0)
    assert found["clocks"].ok is False
    assert "PostgreSQL" in found["clocks"].message
    assert [
        day.day for day in read_delivered(stores.client) if day.is_complete and day.day >= datetime.now(UTC).date()
    ] == []
    assert after.retold_count == 0
    assert {check.name: check for check in examine(stores.settings)}["future days"].is_warning
    assert_each_exactly_once(stores.engine, stores.client)
