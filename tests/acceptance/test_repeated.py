"""An application that repeats lost events under their ids after a failover does not have them delivered twice.

The `event_id` is the idempotency key; but the ledger that goes on has lost those events, and only ClickHouse has them.
Both sides are compared by event id.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from outbox_pipeline.errors import OutboxError, WitnessError
from outbox_pipeline.monitoring.trace import trace_event
from outbox_pipeline.operations import quarantine
from outbox_pipeline.operations.adopt import Adoption, adopt
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.quarantined import Filter, QuarantinedEvent
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.elsewhere import ALREADY_DELIVERED
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import change
from tests.fixtures.children import recover
from tests.fixtures.crew import AGE
from tests.fixtures.events import committed_ids, delivered_ids, publish
from tests.fixtures.instances import Restore, all_batches, back_up, mixed_instances, value
from tests.fixtures.interleave import before_words

pytestmark = pytest.mark.embedded_only


def repeat(engine: Engine, event_ids: Collection[UUID]) -> None:
    """Publish events under these ids, as they were or not."""
    statement = text("SELECT outbox.publish('repeated', '{}', event_id => id) FROM unnest(CAST(:ids AS uuid[])) AS id")
    with engine.begin() as connection:
        connection.execute(statement, {"ids": list(event_ids)})


def skip_positions(engine: Engine) -> None:
    """Let the next events have other positions than in the other instance."""
    with engine.begin() as connection:
        connection.execute(text("SELECT outbox.advance_positions(100)"))


def lose(stores: Stores, count: int) -> list[UUID]:
    """Publish and deliver events in the instance that goes on; the copy does not have them."""
    event_ids = publish(stores.engine, count)
    relay(stores, until_empty=True)
    return event_ids


def held(instance: Stores) -> list[QuarantinedEvent]:
    """Return what quarantine holds."""
    return quarantine.list_held(instance.engine, Filter())


def assert_once(instance: Stores, lost: Collection[UUID]) -> None:
    """Check that each event of either instance has one row, and that a held one has it from the other."""
    found = delivered_ids(instance.client)
    assert len(found) == len(set(found)), f"{len(found) - len(set(found))} events arrived twice"
    assert set(found) == committed_ids(instance.engine) | set(lost)
    assert {event.event_id for event in held(instance)} <= set(lost)


def test_events_repeated_under_their_ids_are_held(stores: Stores, copy: Stores) -> None:
    """Before and after the adoption, beside others; each names the batch that has it, and is discarded in the end."""
    lost = lose(stores, 6)
    publish(copy.engine, 2)
    repeat(copy.engine, lost[:2])

    result = adopt(copy)
    repeat(copy.engine, lost[2:4])
    publish(copy.engine, 2)
    relay(copy, until_empty=True)

    assert (result.repeated_events, result.strange_rows, result.kept_ids) == (2, 4, 6)
    assert {row.event_id for row in result.strange_samples} == set(lost[2:])
    assert_once(copy, lost)
    assert {event.event_id for event in held(copy)} == set(lost[:4])
    theirs = all_batches(stores)[-1].batch_id
    (reason,) = {reason for event in held(copy) for reason in event.reasons}
    assert reason.startswith(f"{ALREADY_DELIVERED}: ClickHouse has this event in batch {theirs},")
    assert "discard it here" in reason
    assert quarantine.count_held(copy.engine).by_reason == {ALREADY_DELIVERED: 4}

    quarantine.requeue(copy.engine, Filter(event_ids=frozenset(lost[:1])))
    relay(copy, until_empty=True)
    quarantine.discard(copy.engine, Filter(reason=ALREADY_DELIVERED), note="delivered before the failover")

    assert_once(copy, lost)
    assert held(copy) == []
    assert reconcile(copy).differences == ()


def said_of(instance: Stores, event_id: UUID) -> tuple[str, str, int]:
    """Return status, sentence and number of rows of a trace."""
    found = trace_event(instance.engine, instance.settings, event_id)
    return found.status, found.explanation, len(found.rows or [])


def test_a_trace_tells_of_both_instances(stores: Stores, copy: Stores) -> None:
    """Of a lost event, of one that was published again, one that is held for it, and one that was given up."""
    lost = lose(stores, 2)
    adopt(copy)

    only_there = said_of(copy, lost[1])
    repeat(copy.engine, lost[:1])
    pending = said_of(copy, lost[0])
    relay(copy, until_empty=True)
    kept = said_of(copy, lost[0])
    quarantine.discard(copy.engine, Filter(event_ids=frozenset(lost[:1])), note="delivered before")
    given_up = said_of(copy, lost[0])

    assert (only_there[0], only_there[2]) == ("gone", 1)
    assert "another instance of this ledger delivered it" in only_there[1]
    for told, status, words in (
        (pending, "pending", "it will be held, so that it is not delivered twice"),
        (kept, "held", "it is held, so that it is not delivered twice, until somebody discards it"),
        (given_up, "discarded", "discarded; ClickHouse has it once"),
    ):
        assert (told[0], told[2]) == (status, 1)
        assert words in told[1]


@pytest.mark.parametrize(
    ("steps", "is_living", "is_apart"),
    [
        ((), True, True),
        (("extract",), True, False),
        (("extract", "validate"), True, True),
        (("extract", "validate"), True, False),
        (("extract",), False, True),
    ],
    ids=["begun", "extracted beside others", "frozen", "frozen beside others", "ended"],
)
def test_a_batch_that_was_begun_before_is_looked_at_again(
    stores: Stores, copy: Stores, steps: tuple[str, ...], is_living: bool, is_apart: bool
) -> None:
    """Frozen or not, and with an attempt at work on it: what it would send stands there already."""
    if is_apart:
        cut_batches(copy.engine, copy.settings, limit=1)
    lost = lose(stores, 3)
    skip_positions(copy.engine)
    repeat(copy.engine, lost[:2])
    cut_batches(copy.engine, copy.settings, limit=1)
    request = request_batches(copy.engine, copy.settings, limit=2)[-1]
    delivery = start_requested(copy, request.batch_id, request.attempt)
    for step in steps:
        getattr(delivery, step)()
    if not is_living:
        with pytest.raises(WitnessError) as stopped:
            deliver(delivery)
        end_failed(delivery, stopped.value)

    result = adopt(copy)
    if is_living:
        with pytest.raises(OutboxError) as refused:
            delivery.finish()
        end_failed(delivery, refused.value)
    recover(copy)

    assert (result.repeated_events, result.doubled_events) == (2, 0)
    assert_once(copy, lost)
    assert {event.event_id for event in held(copy)} == set(lost[:2])


def test_an_event_whose_row_is_gone_is_delivered(stores: Stores, copy: Stores) -> None:
    """Somebody deletes what the other instance delivered: the event here is what is left, held or not."""
    lost = lose(stores, 3)
    adopt(copy)
    repeat(copy.engine, lost[:1])
    relay(copy, until_empty=True)
    change(copy.client, f"DELETE FROM {{table:Identifier}} WHERE event_id = '{lost[0]}'", UUID(int=0))
    change(copy.client, f"DELETE FROM {{table:Identifier}} WHERE event_id = '{lost[1]}'", UUID(int=0))

    quarantine.requeue(copy.engine, Filter(event_ids=frozenset(lost[:1])))
    repeat(copy.engine, lost[1:])
    relay(copy, until_empty=True)

    assert_once(copy, lost)
    assert {event.event_id for event in held(copy)} == set(lost[2:])


def test_an_event_whose_row_stands_elsewhere_by_now_is_held(
    stores: Stores, copy: Stores, restore: Restore, backup: Path
) -> None:
    """The row that was kept is gone, the event was delivered once more and lost once more: it is there, once."""
    lost = lose(stores, 1)
    adopt(copy)
    back_up(copy, backup)
    change(copy.client, f"DELETE FROM {{table:Identifier}} WHERE event_id = '{lost[0]}'", UUID(int=0))
    repeat(copy.engine, lost)
    relay(copy, until_empty=True)
    third = restore(backup)

    adopt(third)
    repeat(third.engine, lost)
    relay(third, until_empty=True)

    assert_once(third, lost)
    (event,) = held(third)
    assert f"in batch {all_batches(copy)[-1].batch_id}, delivered by another instance" in event.reasons[0]


def test_rows_beside_those_of_an_adopted_batch_are_kept_too(stores: Stores, restore: Restore, backup: Path) -> None:
    """Of a batch with events of both kinds the lost ones are; also where it was adopted by an earlier release."""
    here, lost = mixed_instances(stores, restore, backup)
    first = adopt(here)
    with here.engine.begin() as connection:
        connection.execute(text("DELETE FROM outbox.delivered_elsewhere"))
        connection.execute(text("UPDATE outbox.unclaimed SET timeline = timeline + 1"))

    again = adopt(here)
    repeat(here.engine, lost)
    relay(here, until_empty=True)

    assert (first.kept_ids, first.strange_rows) == (3, 3)
    assert (again.kept_ids, again.strange_rows) == (3, 0)
    assert_once(here, lost)
    assert {event.event_id for event in held(here)} == lost


def test_what_stands_twice_already_is_named(stores: Stores, copy: Stores) -> None:
    """A release that kept no ids has delivered repeated events: they are told as doubled, and not as lost."""
    lost = lose(stores, 2)
    adopt(copy)
    with copy.engine.begin() as connection:
        connection.execute(text("DELETE FROM outbox.delivered_elsewhere"))
    repeat(copy.engine, lost)
    relay(copy, until_empty=True)
    with copy.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.unclaimed SET timeline = timeline + 1"))

    result = adopt(copy)

    assert (result.doubled_events, result.repeated_events, result.strange_rows) == (2, 0, 0)
    assert set(result.doubled_samples) == set(lost)


def test_an_adoption_that_was_killed_keeps_nothing_and_is_repeated(stores: Stores, copy: Stores) -> None:
    """The ids are kept in the transaction of the adoption: all of them or none, and a dry run says how many."""
    lost = lose(stores, 3)
    found: list[Adoption] = [adopt(copy, dry_run=True)]

    def die() -> None:
        raise KeyboardInterrupt

    with before_words(copy.engine, "witness_floor = ", die), pytest.raises(KeyboardInterrupt):
        adopt(copy)
    kept = value(copy, "SELECT count(*) FROM outbox.delivered_elsewhere")
    found.append(adopt(copy))
    repeat(copy.engine, lost)
    relay(copy, until_empty=True)

    assert kept == 0
    assert [one.kept_ids for one in found] == [3, 3]
    assert_once(copy, lost)


@pytest.fixture
def aged(copy: Stores) -> Callable[[], Stores]:
    """The copy as it is days later, with a retention of a day."""

    def age() -> Stores:
        with copy.engine.begin() as connection:
            connection.execute(AGE)
            connection.execute(text("UPDATE outbox.delivered_elsewhere SET adopted_at = now() - interval '3 days'"))
        settings = copy.settings.model_copy(update={"retention_days": 1})
        return Stores(copy.engine, copy.client, settings)

    return age


def test_a_prune_forgets_old_ids(stores: Stores, copy: Stores, aged: Callable[[], Stores]) -> None:
    """As it forgets those of events that were delivered here; not while an event with such an id is here."""
    lost = lose(stores, 3)
    adopt(copy)
    repeat(copy.engine, lost[:1])

    young = prune(copy)
    old = aged()
    told, done = prune(old, dry_run=True), prune(old)
    relay(copy, until_empty=True)

    assert (young.forgotten_ids, told.forgotten_ids, done.forgotten_ids) == (0, 2, 2)
    assert [event.event_id for event in held(copy)] == lost[:1]
