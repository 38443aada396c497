"""Quarantine on real engines: a requeued event is delivered exactly once, a discarded one never, nothing else moves."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, text

from outbox_pipeline.errors import QuarantineError, TransientError, UsageError
from outbox_pipeline.operations.quarantine import count_held, discard, list_held, parse_filter, preview, requeue, show
from outbox_pipeline.operations.replay import Outcome, Replayed, replay
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.leases import read_batches
from outbox_pipeline.postgres.tables import batch
from outbox_pipeline.processes import wait_until
from outbox_pipeline.quarantined import Filter, QuarantineStatus
from outbox_pipeline.relay.attempts import start_unrequested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, delivered_ids, publish, quarantined_ids
from tests.fixtures.interleave import at_statement
from tests.fixtures.snapshots import delivered_once

ALL = Filter()
#: An event that is too large under `strict` and good under the default rules.
CONTEXT = '{"text": "0123456789"}'


def strict(stores: Stores) -> Stores:
    """The stores with rules under which `CONTEXT` is too large."""
    return replace(stores, settings=stores.settings.model_copy(update={"context_max_bytes": 10}))


@delivered_once
def hold(stores: Stores, count: int = 1, *, event_type: str = "order_placed") -> list[UUID]:
    """Publish events that are rejected as too large, among one that is not; return the ids of the rejected."""
    publish(stores.engine, 1, context="{}")
    ids = publish(stores.engine, count, event_type=event_type, context=CONTEXT)
    relay(strict(stores), until_empty=True)
    return ids


def one(*ids: UUID) -> Filter:
    """Name events."""
    return Filter(event_ids=frozenset(ids))


def read(engine: Engine, statement: str) -> list[tuple[object, ...]]:
    """Return what one statement selects."""
    with engine.begin() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def replay_all(stores: Stores) -> list[Replayed]:
    """Replay every batch."""
    with ledger_transaction(stores.engine) as connection:
        batches = read_batches(connection, batch.c.status == "processed")
    return list(replay(stores, batches))


def test_a_requeued_event_is_delivered_by_the_next_batch(stores: Stores) -> None:
    """Once the rules bear it, a requeued event arrives exactly once, in a batch of its own time."""
    ids = hold(stores, 3)

    done = requeue(stores.engine, ALL)
    pending = read(stores.engine, "SELECT status FROM outbox.event_status WHERE status = 'pending'")
    relay(stores, until_empty=True)

    assert (done.count, done.refused, len(pending)) == (3, (), 3)
    assert set(ids) <= set(delivered_ids(stores.client))
    assert count_held(stores.engine).count == 0
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_requeued_event_that_is_still_bad_is_held_again(stores: Stores) -> None:
    """Without a fix the event comes back under a new number, and its history shows both stays."""
    (event_id,) = hold(stores)

    requeue(stores.engine, one(event_id))
    relay(strict(stores), until_empty=True)
    history = show(stores.engine, one(event_id)).history

    assert [stay.status for stay in history] == ["requeued", "held"]
    assert history[0].batch_id != history[1].batch_id
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_requeue_leaves_both_batches_provable(stores: Stores) -> None:
    """A replay proves the batch that rejected the event and the batch that delivered it."""
    hold(stores, 2)
    requeue(stores.engine, ALL)
    relay(stores, until_empty=True)

    assert [item.outcome for item in replay_all(stores)] == [Outcome.PROVEN, Outcome.PROVEN]


def test_a_requeue_leaves_both_batches_repairable(stores: Stores) -> None:
    """With all rows lost, a replay restores both batches, the requeued event in its new one only."""
    hold(stores, 2)
    requeue(stores.engine, ALL)
    relay(stores, until_empty=True)
    stores.client.run("DELETE FROM {table:Identifier} WHERE 1", settings={"mutations_sync": 2})

    replayed = replay_all(stores)

    assert [(item.outcome, item.row_count) for item in replayed] == [(Outcome.REDELIVERED, 1), (Outcome.REDELIVERED, 2)]
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_batch_is_replayed_while_its_requeued_event_waits(stores: Stores) -> None:
    """Between requeue and the next cut the original batch can be delivered again; it carries what it always did."""
    hold(stores, 2)
    requeue(stores.engine, ALL)

    deliver(start_unrequested(stores, _only_batch(stores)), reload=True)
    relay(stores, until_empty=True)

    assert_each_exactly_once(stores.engine, stores.client)


def _only_batch(stores: Stores) -> UUID:
    ((batch_id,),) = read(stores.engine, "SELECT batch_id FROM outbox.batch")
    assert isinstance(batch_id, UUID)
    return batch_id


def test_an_event_of_a_batch_in_delivery_is_refused(stores: Stores) -> None:
    """While a replay delivers the batch its held events stay held, and the answer says why; others are requeued."""
    (first,) = hold(stores)
    batch_id = _only_batch(stores)
    (second,) = hold(stores)
    delivery = start_unrequested(stores, batch_id)

    done = requeue(stores.engine, ALL)
    delivery.close()

    assert done.count == 1
    assert [(item.batch_id, item.event_count) for item in done.refused] == [(batch_id, 1)]
    assert "being delivered again" in done.refused[0].why
    assert [event.event_id for event in list_held(stores.engine, ALL)] == [first]
    assert [stay.status for stay in show(stores.engine, one(second)).history] == ["requeued"]


def test_an_event_deleted_by_hand_is_refused(stores: Stores) -> None:
    """An event that no longer exists cannot be delivered; it stays visible in quarantine instead of vanishing."""
    hold(stores)
    with stores.engine.begin() as connection:
        connection.execute(text("ALTER TABLE outbox.event DISABLE TRIGGER USER"))
        connection.execute(text("DELETE FROM outbox.event WHERE position = 2"))

    done = requeue(stores.engine, ALL)

    assert done.count == 0
    assert "gone from outbox.event" in done.refused[0].why
    assert show(stores.engine, Filter(quarantine_ids=frozenset({1}))).content is None


def test_a_discarded_event_stays_out_with_its_note(stores: Stores) -> None:
    """A discarded event is never delivered, cannot be requeued any more, and says why it was given up."""
    (event_id,) = hold(stores)

    count = discard(stores.engine, one(event_id), note=" sent by a broken test client ")
    relay(stores, until_empty=True)

    assert count == 1
    (stay,) = show(stores.engine, one(event_id)).history
    assert (stay.status, stay.note) == (QuarantineStatus.DISCARDED, "sent by a broken test client")
    assert stay.resolved_at is not None
    with pytest.raises(QuarantineError, match="it was discarded at"):
        requeue(stores.engine, one(event_id))
    assert event_id not in delivered_ids(stores.client)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_discard_needs_a_note(stores: Stores) -> None:
    """Nothing is given up without saying why."""
    hold(stores)

    with pytest.raises(QuarantineError, match="Say why"):
        discard(stores.engine, ALL, note="  ")
    assert count_held(stores.engine).count == 1


def test_each_filter_picks_its_events(stores: Stores) -> None:
    """Events are found by id, number, type, reason, batch and time, conditions together narrow it down."""
    engine = stores.engine
    (first,) = hold(stores, event_type="invoice_sent")
    first_batch = _only_batch(stores)
    (second,) = publish(engine, 1, event_type="", context=CONTEXT)
    relay(strict(stores), until_empty=True)
    held = {event.event_id: event for event in list_held(engine, ALL)}
    middle = held[second].quarantined_at

    def found(**words: str) -> set[UUID]:
        return {event.event_id for event in list_held(engine, parse_filter(**words))}

    assert found() == {first, second}
    assert found(event_type="invoice_sent") == {first}
    assert found(reason="event_type_empty") == {second}
    assert found(reason="context_too_large") == {first, second}
    assert found(batch_id=str(first_batch)) == {first}
    assert found(since=middle.isoformat()) == {second}
    assert found(until=middle.isoformat()) == {first}
    assert found(reason="context_too_large", until=middle.isoformat()) == {first}
    assert found(event_type="nothing") == set()
    by_name = parse_filter([str(first), str(held[second].quarantine_id)])
    assert {event.event_id for event in list_held(engine, by_name)} == {first, second}
    assert len(list_held(engine, ALL, limit=1)) == 1


def test_held_events_are_counted_by_reason(stores: Stores) -> None:
    """An event with two reasons counts once among the held and once for each reason."""
    hold(stores)
    publish(stores.engine, 1, event_type="", context=CONTEXT)
    relay(strict(stores), until_empty=True)

    held = count_held(stores.engine)

    assert (held.count, held.by_reason) == (2, {"context_too_large": 2, "event_type_empty": 1})
    assert held.summary() == "2 held: context_too_large 2, event_type_empty 1"
    assert held.oldest_at is not None
    assert datetime.now(UTC) - held.oldest_at < timedelta(minutes=5)


def test_a_reason_is_found_by_its_code(stores: Stores) -> None:
    """What ClickHouse said is kept with the reason; counts and filters go by the code before it."""
    hold(stores, 2)
    with stores.engine.begin() as connection:
        said = "ARRAY['refused_by_clickhouse: Code ' || quarantine_id]"
        connection.execute(text(f"UPDATE outbox.quarantined_event SET reasons = {said}"))
    wanted = Filter(reason="refused_by_clickhouse")

    assert len(list_held(stores.engine, wanted)) == 2
    assert count_held(stores.engine, wanted).by_reason == {"refused_by_clickhouse": 2}
    assert preview(stores.engine, wanted).held.by_reason == {"refused_by_clickhouse": 2}
    assert list_held(stores.engine, Filter(reason="refused")) == []


def test_show_gives_the_context_as_published(stores: Stores) -> None:
    """A person who asks sees the event byte for byte, with reasons and batch."""
    context = '{"b": 1.10,  "a": 1e400, "a": 2}'
    (event_id,) = publish(stores.engine, 1, context=context)
    relay(strict(stores), until_empty=True)

    shown = show(stores.engine, one(event_id))

    assert shown.content is not None
    assert (shown.content.context, shown.content.context_bytes) == (context, len(context))
    assert (shown.content.status, shown.content.batch_status) == ("held", "processed")
    assert shown.history[0].reasons == ["context_too_large"]


@pytest.mark.parametrize("act", [lambda e, f: requeue(e, f), lambda e, f: discard(e, f, note="why"), preview])
def test_what_is_not_held_is_named(stores: Stores, act: Callable[[Engine, Filter], object]) -> None:
    """An unknown id stops the whole command, held ones beside it included; a filter that matches nothing says so."""
    (held,) = hold(stores)
    unknown = uuid4()

    with pytest.raises(QuarantineError, match=f"{unknown}.*Nothing was changed"):
        act(stores.engine, one(held, unknown))
    with pytest.raises(QuarantineError, match="No held event matches"):
        act(stores.engine, Filter(event_type="nothing"))
    assert quarantined_ids(stores.engine) == [held]


def test_only_what_was_counted_is_changed(stores: Stores) -> None:
    """An event that joins between the count and the confirmation is not discarded with the others."""
    hold(stores, 2)
    counted = preview(stores.engine, ALL)
    late = hold(stores)

    discard(stores.engine, counted.wanted, note="counted before")

    assert counted.held.count == 2
    assert [event.event_id for event in list_held(stores.engine, ALL)] == late


def test_a_requeue_waits_for_a_cut(stores: Stores, postgres_url: str) -> None:
    """While somebody holds `unclaimed` a requeue changes nothing; it gives up with a sentence in bounded time."""
    hold(stores)
    other = create_engine(postgres_url)
    with other.begin() as cutting:
        cutting.execute(text("SELECT is_only_row FROM outbox.unclaimed FOR UPDATE"))

        with pytest.raises(TransientError, match="lock timeout"):
            requeue(stores.engine, ALL, lock_timeout_seconds=0.05)
    other.dispose()

    assert count_held(stores.engine).count == 1


def test_a_requeue_waits_before_it_locks_anything_else(stores: Stores, postgres_url: str) -> None:
    """Locks are taken in one order: whoever waits for `unclaimed` holds neither batches nor quarantined events yet."""
    hold(stores)
    other = create_engine(postgres_url)
    with ThreadPoolExecutor(1) as pool, other.connect() as cutting:
        cutting.execute(text("SELECT is_only_row FROM outbox.unclaimed FOR UPDATE"))
        waiting = pool.submit(requeue, stores.engine, ALL, lock_timeout_seconds=20)
        assert wait_until(lambda: bool(read(other, _WAITING)), seconds=20, pause=0.01), "the requeue waits for nothing"

        cutting.execute(text("SELECT batch_id FROM outbox.batch FOR UPDATE NOWAIT"))
        cutting.execute(text("SELECT position FROM outbox.quarantined_event FOR UPDATE NOWAIT"))
        cutting.commit()
        done = waiting.result(timeout=20)
    other.dispose()

    assert done.count == 1


_WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("requeue_first", [True, False])
def test_an_event_is_resolved_once(stores: Stores, postgres_url: str, requeue_first: bool, number: int) -> None:
    """One person requeues and another discards, between any two statements: one of them gets it, and that holds."""
    (event_id,) = hold(stores)
    other = create_outbox_engine(Settings(postgres_url=SecretStr(postgres_url)))
    acts = [_requeue_count, _discard_count] if requeue_first else [_discard_count, _requeue_count]
    counts: list[int] = []

    with at_statement(stores.engine, number, lambda: counts.append(acts[1](other))):
        counts.append(acts[0](stores.engine))
    other.dispose()
    relay(stores, until_empty=True)

    assert sum(counts) == 1
    (stay,) = show(stores.engine, one(event_id)).history
    assert (event_id in delivered_ids(stores.client)) == (stay.status == QuarantineStatus.REQUEUED)
    assert_each_exactly_once(stores.engine, stores.client)


def _requeue_count(engine: Engine) -> int:
    try:
        return requeue(engine, ALL, lock_timeout_seconds=0.05).count
    except (QuarantineError, TransientError):
        return 0


def _discard_count(engine: Engine) -> int:
    try:
        return discard(engine, ALL, note="given up", lock_timeout_seconds=0.05)
    except (QuarantineError, TransientError):
        return 0


def test_requeues_race_with_cuts_marks_and_discards(stores: Stores, settings: Settings, postgres_url: str) -> None:
    """With deliveries, requeues and discards at once nothing deadlocks, and each event ends in exactly one place."""
    rounds = 12
    stop = False

    def deliver_on() -> None:
        # Small batches, and every other relay refuses: held events come and go all the time.
        turn = 0
        while not stop:
            turn += 1
            rules = {"batch_max_events": 7, "context_max_bytes": 10 if turn % 2 else 1_000_000}
            relay(replace(stores, settings=settings.model_copy(update=rules)))

    def resolve_on() -> None:
        while not stop:
            _unless_empty(lambda: requeue(stores.engine, ALL, lock_timeout_seconds=20))

    def give_up_on() -> None:
        while not stop:
            _unless_empty(lambda: discard(stores.engine, Filter(event_type="unwanted"), note="race"))

    with ThreadPoolExecutor(4) as pool:
        racing = [pool.submit(act) for act in (deliver_on, resolve_on, resolve_on, give_up_on)]
        for _ in range(rounds):
            publish(stores.engine, 10, context=CONTEXT)
            publish(stores.engine, 3, event_type="unwanted", context=CONTEXT)
            cut_batches(stores.engine, settings, limit=1)
        stop = True
        for task in racing:
            task.result(timeout=60)

    while count_held(stores.engine).count:
        requeue(stores.engine, ALL)
        relay(stores, until_empty=True)
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)
    places = "SELECT count(*) FROM outbox.event_status WHERE status NOT IN ('processed', 'discarded')"
    assert read(stores.engine, places) == [(0,)]


def _unless_empty(act: Callable[[], object]) -> None:
    try:
        act()
    except QuarantineError:
        return


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"since": "yesterday"}, "no time"),
        ({"until": "2026-13-01"}, "no time"),
        ({"since": "2026-03-02", "until": "2026-03-01"}, "earlier"),
        ({"ids": ["no-uuid"]}, "no id of an event"),
        ({"ids": [str(2**63)]}, "no number"),
        ({"ids": ["9" * 5000]}, "no number"),
        ({"batch_id": "7"}, "no id of a batch"),
        ({"ids": ["7"], "reason": "context_too_large"}, "not by both"),
    ],
)
def test_a_wrong_word_is_named(words: dict[str, str], said: str) -> None:
    """A filter that cannot be read is one sentence about the word that is wrong, which it does not repeat."""
    with pytest.raises(UsageError, match=said) as refused:
        parse_filter(**words)  # type: ignore[arg-type]

    given = [word for value in words.values() for word in (value if isinstance(value, list) else [value])]
    assert not any(word in str(refused.value).split() for word in given)


def test_a_time_without_zone_is_utc() -> None:
    """Times are read as UTC unless they say otherwise."""
    assert parse_filter(since="2026-03-01").since == datetime(2026, 3, 1, tzinfo=UTC)
    assert parse_filter(since="2026-03-01T02:00+02:00").since == datetime(2026, 3, 1, tzinfo=UTC)
