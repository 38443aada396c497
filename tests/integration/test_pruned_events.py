"""Events after their rows are gone: still known, traced, and no reason to take an id for new too early."""

from sqlalchemy import text

from outbox_pipeline.events import prepare_event
from outbox_pipeline.monitoring.trace import trace_event
from outbox_pipeline.operations import quarantine
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import committed_ids, delivered_ids, publish
from tests.fixtures.retained import age, batch_id, deliver


def test_a_pruned_event_can_still_be_traced(stores: Stores) -> None:
    """Its row in ClickHouse names its batch, and the batch says when it was delivered and pruned."""
    event_id, *_ = deliver(stores)
    prune(stores)

    found = trace_event(stores.engine, stores.settings, event_id)

    assert found.status == "gone"
    assert "pruned on" in found.explanation
    assert found.batch is not None
    assert (found.batch.batch_id, found.batch.status) == (batch_id(stores), "processed")
    assert len(found.rows or []) == 1
    with stores.engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM outbox.event_status")) == 0


def test_a_refused_event_is_known_after_its_row_was_pruned(stores: Stores) -> None:
    """What was discarded or replaced is told from quarantine: nobody must think that it never existed."""
    ids = publish(stores.engine, 2, context="[1]")
    relay(stores, until_empty=True)
    given_up, corrected = (Filter(event_ids=frozenset({event_id})) for event_id in ids)
    quarantine.discard(stores.engine, given_up, note="nobody needs it")
    quarantine.replace(stores.engine, corrected, prepare_event({"n": 1}, event_type="order_placed"))
    age(stores)
    prune(stores)

    found = [trace_event(stores.engine, stores.settings, event_id) for event_id in ids]

    assert [trace.status for trace in found] == ["discarded", "replaced"]
    assert all(trace.is_known and "pruned" in trace.explanation for trace in found)
    assert found[0].reasons == ["context_not_object"]


def test_a_repeated_id_is_a_new_event_once_the_first_is_pruned(stores: Stores) -> None:
    """The idempotency key reaches as far back as the retention: documented, and this is what happens beyond it."""
    (event_id,) = deliver(stores, 1)
    again = text("SELECT outbox.publish('order_placed', '{}', event_id => :event_id)")
    with stores.engine.begin() as connection:
        connection.execute(again, {"event_id": event_id})
    assert committed_ids(stores.engine) == {event_id}
    assert relay(stores, until_empty=True).batch_count == 0
    prune(stores)

    with stores.engine.begin() as connection:
        connection.execute(again, {"event_id": event_id})
    relay(stores, until_empty=True)

    assert delivered_ids(stores.client) == [event_id, event_id]
