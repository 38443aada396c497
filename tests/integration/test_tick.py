"""The scheduler's look: one batch probes after a passing failure, and then everything goes at once."""

from datetime import date

import pytest
from sqlalchemy import text

from outbox_pipeline.batches import BatchRequest
from outbox_pipeline.errors import ConfigurationError, OutboxError, TransientError
from outbox_pipeline.relay.attempts import end_failed, start_requested, start_unrequested
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.loop import deliver
from outbox_pipeline.relay.tick import Tick, plan_tick
from outbox_pipeline.stores import Stores
from tests.fixtures.clock import shift
from tests.fixtures.events import publish

EVER = (date.min, date.max)


def tick(stores: Stores) -> Tick:
    """Plan one tick with batches of one event."""
    settings = stores.settings.model_copy(update={"batch_max_events": 1, "lease_seconds": 30})
    return plan_tick(stores.engine, settings, days=EVER)


def fail(stores: Stores, request: BatchRequest, error: OutboxError) -> None:
    """Let a requested run fail, and its backoff be over."""
    end_failed(start_requested(stores, request.batch_id, request.attempt), error)
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET next_attempt_at = now() WHERE status = 'failed'"))


def succeed(stores: Stores, request: BatchRequest) -> None:
    """Let a requested run deliver its batch."""
    deliver(start_requested(stores, request.batch_id, request.attempt))


def test_after_an_outage_one_batch_probes_then_all_drain(stores: Stores) -> None:
    """Failures for a passing reason are followed by single requests until one is delivered; then by all at once."""
    publish(stores.engine, 3)
    first = tick(stores).requests
    for request in first:
        fail(stores, request, TransientError("ClickHouse is away"))

    probe = tick(stores)
    meanwhile = tick(stores)
    fail(stores, probe.requests[0], TransientError("still away"))
    second_probe = tick(stores)
    succeed(stores, second_probe.requests[0])
    rest = tick(stores)

    assert [len(item.requests) for item in (probe, meanwhile, second_probe, rest)] == [1, 0, 1, 2]
    assert (probe.is_probing, rest.is_probing) == (True, False)
    assert "one at a time" in meanwhile.summary()


def test_a_failure_of_another_kind_holds_nobody_up(stores: Stores) -> None:
    """A batch that fails for its own reason is retried beside the others."""
    publish(stores.engine, 3)
    first = tick(stores).requests
    fail(stores, first[0], ConfigurationError("no table"))
    for request in first[1:]:
        succeed(stores, request)

    publish(stores.engine, 2)

    assert len(tick(stores).requests) == 3


@pytest.mark.parametrize("days", [(date(2030, 1, 1), date(2030, 1, 2)), (date(2020, 1, 1), date(2020, 1, 2))])
def test_a_batch_of_a_day_without_partition_is_requested_and_told(stores: Stores, days: tuple[date, date]) -> None:
    """Such a batch does not wait for its day; its day stays what it is, and the tick counts it."""
    publish(stores.engine, 1)

    found = plan_tick(stores.engine, stores.settings, days=days)
    later = plan_tick(stores.engine, stores.settings, days=days)

    assert [request.recorded_on for request in found.requests] == [found.cut.batches[0].recorded_on]
    assert (later.other_day_count, later.open_count, later.is_held_back) == (1, 1, False)
    assert "1 of a day that is no partition, delivered under the nearest" in later.summary()


def test_without_any_day_everything_is_held_back_and_told(stores: Stores) -> None:
    """While the first day is in the future no run can be started: nothing is cut, and it begins once there is a day."""
    publish(stores.engine, 1)
    plan_tick(stores.engine, stores.settings, days=EVER)
    publish(stores.engine, 1)

    held = plan_tick(stores.engine, stores.settings, days=(date(2030, 1, 1), date(2026, 1, 1)))
    then = plan_tick(stores.engine, stores.settings, days=EVER)

    assert (held.requests, held.cut.event_count, held.held_back_count) == ([], 0, 1)
    assert "1 batch and all pending events held back, because OUTBOX_START_DATE is in the future" in held.summary()
    assert then.cut.event_count == len(then.requests) == 1


def test_a_failure_in_the_future_makes_no_batch_probe(stores: Stores) -> None:
    """A failure from under a clock that was ahead does not let batches go one at a time until its time has come."""
    publish(stores.engine, 3)
    first = tick(stores).requests
    fail(stores, first[0], TransientError("ClickHouse is away"))
    for request in first[1:]:
        succeed(stores, request)
    shift(stores.engine, days=400, where="status = 'failed'")
    publish(stores.engine, 2)

    found = tick(stores)

    assert (found.is_probing, len(found.requests)) == (False, 3)


def test_a_probe_that_went_silent_is_followed_by_another(stores: Stores) -> None:
    """A request whose lease is over counts no longer as being at work, so probing goes on without it."""
    publish(stores.engine, 1)
    fail(stores, tick(stores).requests[0], TransientError("ClickHouse is away"))
    assert len(tick(stores).requests) == 1
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET lease_until = clock_timestamp() - interval '1 s'"))

    found = tick(stores)

    assert (found.is_probing, len(found.requests)) == (True, 1)


def test_a_success_in_the_future_does_not_keep_batches_from_probing(stores: Stores) -> None:
    """A mark from under a clock that was ahead is not taken for a success after each outage since."""
    publish(stores.engine, 1)
    succeed(stores, tick(stores).requests[0])
    shift(stores.engine, days=400)
    publish(stores.engine, 2)
    for request in tick(stores).requests:
        fail(stores, request, TransientError("ClickHouse is away"))

    probe = tick(stores)

    assert (probe.is_probing, len(probe.requests)) == (True, 1)


def test_a_tick_asks_for_a_bounded_number_of_runs(stores: Stores) -> None:
    """However much is pending, a tick cuts OUTBOX_MAX_CUTS_PER_TICK batches, and OUTBOX_MAX_OPEN_BATCHES in all."""
    publish(stores.engine, 12)
    settings = stores.settings.model_copy(
        update={"batch_max_events": 1, "max_cuts_per_tick": 3, "max_open_batches": 5, "lease_seconds": 30}
    )

    ticks = [plan_tick(stores.engine, settings, days=EVER) for _ in range(3)]

    assert [(len(each.cut.batches), len(each.requests)) for each in ticks] == [(3, 3), (2, 2), (0, 0)]


def test_the_first_batch_of_a_backlog_does_not_wait_for_the_others(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs start after their tick: with nothing in flight, a tick whose cuts are slow leaves the rest to the next."""
    monkeypatch.setattr("outbox_pipeline.relay.tick._FIRST_SECONDS", 0.0)
    publish(stores.engine, 3)

    ticks = [tick(stores) for _ in range(3)]

    assert [len(each.requests) for each in ticks] == [1, 2, 0]


def take_over(stores: Stores, count: int) -> list[Delivery]:
    """Let a replay take over processed batches."""
    with stores.engine.begin() as connection:
        ids = connection.execute(
            text("SELECT batch_id FROM outbox.batch WHERE status = 'processed' ORDER BY cut_at LIMIT :count"),
            {"count": count},
        ).scalars()
        wanted = list(ids)
    return [start_unrequested(stores, batch_id) for batch_id in wanted]


def test_a_replay_does_not_hold_the_probe_up(stores: Stores) -> None:
    """While a replay works on an old batch, the one batch that probes after an outage is still requested."""
    publish(stores.engine, 1)
    succeed(stores, tick(stores).requests[0])
    (replayed,) = take_over(stores, 1)
    publish(stores.engine, 2)
    for request in tick(stores).requests:
        fail(stores, request, TransientError("ClickHouse is away"))

    probe = tick(stores)
    replayed.close()

    assert (probe.is_probing, len(probe.requests)) == (True, 1)


def test_replayed_batches_leave_all_room_to_new_ones(stores: Stores) -> None:
    """Batches that a replay could not finish do not keep new ones from being cut, and are requested after them."""
    publish(stores.engine, 4)
    for request in tick(stores).requests:
        succeed(stores, request)
    for delivery in take_over(stores, 4):
        end_failed(delivery, ConfigurationError("no table"))
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET next_attempt_at = now() WHERE status = 'failed'"))
    publish(stores.engine, 2)

    settings = stores.settings.model_copy(update={"batch_max_events": 1, "max_open_batches": 2})
    found = plan_tick(stores.engine, settings, days=EVER)

    with stores.engine.begin() as connection:
        replayed = set(
            connection.execute(text("SELECT batch_id FROM outbox.batch WHERE processed_at IS NOT NULL")).scalars()
        )
    assert len(found.requests) == 2
    assert not replayed & {request.batch_id for request in found.requests}
