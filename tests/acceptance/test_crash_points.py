"""A relay killed with SIGKILL at any boundary is recovered by the normal loop, and each event arrives exactly once."""

import pytest

from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.points import Point
from outbox_pipeline.stores import Stores
from tests.fixtures.children import Children, recover
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.instances import cut_without_number
from tests.fixtures.pgbouncer import Through, left_behind, url_to
from tests.fixtures.too_large import let_be_too_large

#: Points that only a repair reaches: a second attempt on a batch whose rows have gone from ClickHouse.
REPAIRS = frozenset({Point.FENCED, Point.GENERATION_RAISED, Point.OLDER_DELETED})

#: A repair sends the same generation first and then the next one.
REPAIR_COURSE = [(Point.SENT, 1), (Point.SENDING, 2), (Point.SENT, 2)]


def lose_some_rows(stores: Stores) -> None:
    """Deliver what is pending, then take every second row out of ClickHouse by hand."""
    relay(stores, until_empty=True)
    stores.client.run("DELETE FROM {table:Identifier} WHERE position % 2 = 0", settings={"mutations_sync": 2})


def publish_good_and_bad(stores: Stores) -> None:
    """Publish what a batch can hold: events to deliver and events to quarantine."""
    publish(stores.engine, 20)
    publish(stores.engine, 2, context="[]")


@pytest.mark.parametrize("point", list(Point))
@pytest.mark.usefixtures("unclaimed")
def test_a_relay_killed_at_any_point_is_recovered(stores: Stores, children: Children, point: Point) -> None:
    """Whatever boundary the process died at, the loop ends at exactly the ledger's rows."""
    publish_good_and_bad(stores)
    if point in REPAIRS:
        lose_some_rows(stores)
    if point == Point.NUMBERED:
        cut_without_number(stores)
    if point in (Point.SPLITTING, Point.SPLIT):
        let_be_too_large(stores)
    if point in {Point.ANSWERED, Point.REFROZEN}:
        stores.client.run("ALTER TABLE {table:Identifier} ADD CONSTRAINT odd CHECK position % 2 = 1")

    children.start(stores, at=point, redeliver=point in REPAIRS).wait_killed()
    recover(stores)

    assert_each_exactly_once(stores.engine, stores.client)


@pytest.mark.parametrize(("point", "nth"), REPAIR_COURSE)
def test_a_repair_killed_in_either_sending_is_recovered(
    stores: Stores, children: Children, point: Point, nth: int
) -> None:
    """Killed in either of its two sendings, a repair is finished by the loop."""
    publish_good_and_bad(stores)
    lose_some_rows(stores)

    children.start(stores, at=point, nth=nth, redeliver=True).wait_killed()
    recover(stores)

    assert_each_exactly_once(stores.engine, stores.client)


def test_a_killed_delivery_leaves_nothing_in_the_pooler(through: Through, stores: Stores, children: Children) -> None:
    """After kill -9 the next client finds its session as ever, and the batch is delivered through the same pooler."""
    here = through()
    publish(stores.engine, 5)
    before = left_behind(url_to(here))

    children.start(here, at=Point.MARKING, how="kill").wait_killed()

    left = left_behind(url_to(here)) ^ before
    assert {what for what, _ in left} <= {"process"}
    recover(here)
    assert_each_exactly_once(stores.engine, stores.client)
