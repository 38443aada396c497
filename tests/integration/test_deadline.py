"""An insert begins before its deadline, which ClickHouse's own clock decides, or it refuses itself."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import text

from outbox_pipeline.clickhouse.client import EventLogClient, open_client
from outbox_pipeline.clickhouse.deadline import read_deadline
from outbox_pipeline.operations.replay import Outcome, replay
from outbox_pipeline.operations.replay_choice import Choice, choose
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.stores import Stores
from tests.fixtures.children import recover
from tests.fixtures.events import assert_each_exactly_once, delivered_ids, publish, quarantined_ids
from tests.fixtures.proxy import Fault, FaultyProxy, through

_GRACE = "outbox_pipeline.clickhouse.deadline.GRACE_SECONDS"
_IS_PAST = "SELECT now64(6, 'UTC') > {moment:DateTime64(6, 'UTC')} AS is_past"


@pytest.fixture
def distant(stores: Stores, proxy: FaultyProxy) -> Iterator[Stores]:
    """The same stores, with ClickHouse behind the proxy."""
    settings = through(proxy, stores.settings)
    client = open_client(settings)
    yield replace(stores, client=client, settings=settings)
    client.close()


def wait_past(client: EventLogClient, moment: str) -> None:
    """Wait until ClickHouse's clock is past a moment that it has told."""
    assert wait_until(lambda: bool(client.rows(_IS_PAST, {"moment": moment})[0]["is_past"]), seconds=30, pause=0.1)


def lose_rows_once(stores: Stores) -> Callable[[], None]:
    """Return what deletes half of the rows when it is called for the first time."""
    losses = iter([1])

    def lose() -> None:
        if next(losses, None):
            stores.client.run("DELETE FROM {table:Identifier} WHERE position % 2 = 0", settings={"mutations_sync": 2})

    return lose


def test_an_attempt_may_take_longer_than_an_insert_may_be_on_its_way(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is read right before each sending, so neither what came before nor an earlier sending counts."""
    monkeypatch.setattr(_GRACE, 0)
    publish(stores.engine, 30)
    lose, waited = lose_rows_once(stores), []

    def dawdle(point: Point) -> None:
        if point in (Point.FROZEN, Point.OLDER_DELETED):
            wait_past(stores.client, read_deadline(stores.client, stores.settings.lease_seconds))
            waited.append(point)
        if point == Point.SENT:
            lose()

    end = listen(dawdle)
    try:
        result = relay(stores)
    finally:
        end()

    assert (result.failures, waited) == ((), [Point.FROZEN, Point.OLDER_DELETED])
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_deletion_may_take_longer_than_an_insert_may_be_on_its_way(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the look at the witness told before older rows were deleted is no deadline for what is sent behind that."""
    monkeypatch.setattr(_GRACE, 0)
    publish(stores.engine, 30)
    relay(stores, until_empty=True)

    def dawdle(point: Point) -> None:
        if point == Point.OLDER_DELETED:
            wait_past(stores.client, read_deadline(stores.client, stores.settings.lease_seconds))

    end = listen(dawdle)
    try:
        (replayed,) = replay(stores, choose(stores, Choice()), reload=True)
    finally:
        end()

    assert replayed.outcome == Outcome.REDELIVERED
    assert_each_exactly_once(stores.engine, stores.client)


def test_an_insert_held_back_beyond_its_deadline_lands_nothing(
    stores: Stores, distant: Stores, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ClickHouse refuses it, no event is looked at for it, and the next attempt delivers."""
    monkeypatch.setattr(_GRACE, -1.5)
    publish(stores.engine, 30)
    held = proxy.inject(Fault.HOLD_REQUEST)

    with ThreadPoolExecutor(1) as pool:
        relayed = pool.submit(relay, distant)
        held.wait_reached()
        wait_past(stores.client, read_deadline(stores.client, stores.settings.lease_seconds))
        held.release()
        (failure,) = relayed.result().failures
    with stores.engine.begin() as connection:
        row = connection.execute(text("SELECT last_error_kind, answered_generation FROM outbox.batch")).one()

    assert "arrived after its deadline" in failure
    assert tuple(row) == ("transient", None)
    assert (delivered_ids(stores.client), quarantined_ids(stores.engine)) == ([], [])
    assert proxy.count("CREATE OR REPLACE TABLE") == 0

    monkeypatch.undo()
    recover(distant)

    assert proxy.count() == 2
    assert_each_exactly_once(stores.engine, stores.client)
