"""Whatever a network does to an insert, the normal loop ends at exactly the ledger's rows, and says what happened."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import text

from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.children import Children, recover
from tests.fixtures.events import assert_each_exactly_once, delivered_ids, publish
from tests.fixtures.proxy import DELETE, FENCE, Fault, FaultyProxy, through

#: How long the client here waits for an answer.
_ANSWER_SECONDS = 1


@pytest.fixture
def distant(stores: Stores, proxy: FaultyProxy) -> Iterator[Stores]:
    """The same stores, with ClickHouse behind the proxy and a client that is soon impatient."""
    settings = through(proxy, stores.settings)
    client = open_client(settings, timeout_seconds=_ANSWER_SECONDS)
    yield replace(stores, client=client, settings=settings)
    client.close()


def last_error(stores: Stores) -> tuple[str, str]:
    """Return the kind and the words of the only batch's last failure."""
    with stores.engine.begin() as connection:
        row = connection.execute(text("SELECT last_error_kind, last_error FROM outbox.batch")).one()
    return row.last_error_kind, row.last_error


@pytest.mark.parametrize(
    ("fault", "kind", "words", "arrived"),
    [
        (Fault.LOSE_REQUEST, "in_doubt", "The connection to ClickHouse broke", 0),
        (Fault.CUT_BODY, "in_doubt", "The connection to ClickHouse broke", 0),
        (Fault.LOSE_ANSWER, "in_doubt", "The connection to ClickHouse broke", 50),
        (Fault.HOLD_ANSWER, "in_doubt", "has not answered it in time", 50),
        (Fault.REFUSE_429, "transient", "ClickHouse is busy", 0),
        (Fault.REFUSE_503, "transient", "ClickHouse is busy", 0),
    ],
)
def test_an_insert_that_fails_on_the_way(
    stores: Stores, distant: Stores, proxy: FaultyProxy, fault: Fault, kind: str, words: str, arrived: int
) -> None:
    """The attempt fails with its kind in one sentence; the next one looks, and sends only what is not there."""
    publish(stores.engine, 50)
    proxy.inject(fault)

    (failure,) = relay(distant).failures
    assert proxy.count() == 1, "the client sent the insert again by itself"
    assert len(delivered_ids(stores.client)) == arrived
    assert last_error(stores) == (kind, failure)
    assert words in failure
    assert "\n" not in failure

    recover(distant)

    assert proxy.count() == (1 if arrived else 2)
    assert_each_exactly_once(stores.engine, stores.client)


def test_an_insert_that_fails_again_and_again(stores: Stores, distant: Stores, proxy: FaultyProxy) -> None:
    """Lost answers in a row add nothing, and lost requests take nothing away."""
    publish(stores.engine, 50)
    proxy.inject(Fault.CUT_BODY, times=2)
    proxy.inject(Fault.LOSE_ANSWER, nth=3)

    recover(distant)

    assert proxy.count() == 3
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_request_held_back_arrives_after_its_repetition(stores: Stores, distant: Stores, proxy: FaultyProxy) -> None:
    """A request that the client gave up and sent again is refused when it arrives after all."""
    publish(stores.engine, 50)
    held = proxy.inject(Fault.HOLD_REQUEST)

    (failure,) = relay(distant).failures
    recover(distant)
    held.release()

    assert "has not answered it in time" in failure
    assert proxy.count() == 2
    assert_each_exactly_once(stores.engine, stores.client)


@pytest.mark.parametrize("statement", [FENCE, DELETE])
@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER])
def test_a_repair_that_fails_on_the_way(
    stores: Stores, distant: Stores, proxy: FaultyProxy, statement: str, fault: Fault
) -> None:
    """The fence and the removal of older rows can get lost too; the next attempt does both again."""
    publish(stores.engine, 50)
    proxy.inject(Fault.LOSE_ANSWER)
    relay(distant)
    stores.client.run("DELETE FROM {table:Identifier} WHERE position % 2 = 0", settings={"mutations_sync": 2})
    proxy.inject(fault, statement)

    recover(distant)

    assert proxy.count(statement) == 2
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_relay_killed_in_the_middle_of_its_insert(stores: Stores, proxy: FaultyProxy, children: Children) -> None:
    """A process that dies while ClickHouse reads its request leaves no row of it behind, and the loop sends it all."""
    publish(stores.engine, 50)
    held = proxy.inject(Fault.HOLD_BODY)
    child = children.start(stores, settings=through(proxy, stores.settings))
    held.wait_reached()

    child.kill()
    held.release()
    recover(stores)

    assert_each_exactly_once(stores.engine, stores.client)
