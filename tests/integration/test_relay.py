"""The relay has several batches under way at once: faster, and nothing is lost, left or held by it."""

import os
import signal
import threading
import time

import pytest
from sqlalchemy import text

from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import RelayResult, relay
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.stores import Stores
from tests.fixtures.commands import Outbox
from tests.fixtures.costs import traffic
from tests.fixtures.events import assert_each_exactly_once, publish

_PATIENCE_SECONDS = 30

#: In which a batch of ten events is read, were there room for it.
_LONG_ENOUGH_SECONDS = 0.5


@pytest.fixture
def small(stores: Stores) -> Stores:
    """Stores whose batches have at most ten events and are not tried again within a test."""
    limits = {"batch_max_events": 10, "retry_base_seconds": 300}
    return Stores(stores.engine, stores.client, stores.settings.model_copy(update=limits))


def heartbeats() -> list[str]:
    """Return the leases that this process keeps alive now."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("heartbeat-")]


def statuses(stores: Stores) -> list[str]:
    """Return the batches' statuses in the order they were cut."""
    with stores.engine.begin() as connection:
        return list(connection.execute(text("SELECT status FROM outbox.batch ORDER BY cut_at")).scalars())


def test_the_next_batches_are_read_while_others_are_loaded(small: Stores) -> None:
    """No load begins before three batches are there to be loaded: waiting for them would never end otherwise."""
    publish(small.engine, 30)
    three = threading.Barrier(3)

    end = listen(lambda point: point == Point.SENDING and three.wait(_PATIENCE_SECONDS))
    try:
        result = relay(small, until_empty=True)
    finally:
        end()

    assert (result.batch_count, result.delivered_count) == (3, 30)
    assert_each_exactly_once(small.engine, small.client)


def test_two_batches_at_most_have_their_events_in_memory(small: Stores) -> None:
    """While two are being validated the third is not read, although its worker is free."""
    publish(small.engine, 30)
    read: list[Point] = []
    seen: list[int] = []
    both = threading.Barrier(2)

    def stay(point: Point) -> None:
        if point == Point.EXTRACTED:
            read.append(point)
            if len(read) <= 2:
                both.wait(_PATIENCE_SECONDS)
                time.sleep(_LONG_ENOUGH_SECONDS)
                seen.append(len(read))

    end = listen(stay)
    try:
        relay(small, until_empty=True)
    finally:
        end()

    assert seen[0] == 2
    assert_each_exactly_once(small.engine, small.client)


def test_one_batch_is_looked_for_three_times(small: Stores) -> None:
    """It is found, nothing is found beside it, and nothing after it: no worker looks while another one does."""
    publish(small.engine, 5)

    with traffic(small.engine) as seen:
        relay(small, until_empty=True)

    assert sum("FROM outbox.unclaimed FOR UPDATE" in statement for statement in seen.statements) == 3
    assert_each_exactly_once(small.engine, small.client)


def test_what_is_committed_during_the_last_load_is_delivered_too(small: Stores) -> None:
    """Nothing was pending when the other workers looked, so one looks again before the relay ends."""
    publish(small.engine, 5)
    late = iter([7, 8])

    def commit_more(point: Point) -> None:
        if point == Point.MARKING and (count := next(late, None)) is not None:
            publish(small.engine, count)

    end = listen(commit_more)
    try:
        result = relay(small, until_empty=True)
    finally:
        end()

    assert result.delivered_count == 20
    assert_each_exactly_once(small.engine, small.client)


def test_a_batch_that_cannot_be_read_stops_no_other(small: Stores) -> None:
    """Its failure is in the ledger and in the result; the batches before and after it are delivered."""
    publish(small.engine, 30)
    cut_batches(small.engine, small.settings, limit=3)
    with small.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # past the trigger that forbids it
        connection.execute(text("DELETE FROM outbox.event WHERE position = 15"))

    result = relay(small, until_empty=True)

    assert (result.batch_count, result.delivered_count) == (2, 20)
    assert "PostgreSQL holds 9 of the 10 events" in result.failures[0]
    assert statuses(small) == ["processed", "failed", "processed"]
    assert heartbeats() == []


def test_a_caller_that_stops_leaves_no_batch_half_way(small: Stores) -> None:
    """What was under way is delivered first; nothing more is begun."""
    publish(small.engine, 100)

    def stop(_: RelayResult) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        relay(small, until_empty=True, on_progress=stop)

    assert set(statuses(small)) == {"processed"}
    assert len(statuses(small)) < 10
    assert heartbeats() == []


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("options", [[], ["--until-empty"]])
def test_a_command_that_is_ended_delivers_what_is_under_way(
    stores: Stores, outbox: Outbox, ending: signal.Signals, options: list[str]
) -> None:
    """A supervisor's SIGTERM counts like Ctrl-C: no batch waits for its lease to run out."""
    publish(stores.engine, 10)
    before = signal.getsignal(signal.SIGTERM)

    end = listen(lambda point: point == Point.SENDING and os.kill(os.getpid(), ending))
    try:
        ended = outbox("relay", *options)
    finally:
        end()

    assert ended.exit_code == 130
    assert statuses(stores) == ["processed"]
    assert heartbeats() == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_round_takes_one_batch(small: Stores) -> None:
    """Without until_empty a relay leaves to others what it does not deliver."""
    publish(small.engine, 30)

    assert relay(small).delivered_count == 10
    assert statuses(small) == ["processed"]
