"""Retention: what a prune deletes, what it never deletes, and what is left afterwards on both sides."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from outbox_pipeline.clickhouse.fences import FIRST, old_fences
from outbox_pipeline.clickhouse.load import raise_fence
from outbox_pipeline.errors import LedgerError
from outbox_pipeline.events import prepare_event
from outbox_pipeline.operations import quarantine
from outbox_pipeline.operations.replay import rechecks_due
from outbox_pipeline.operations.retention import MAX_REFUSED, Reason, prune
from outbox_pipeline.postgres import retention as store
from outbox_pipeline.postgres.leases import read_batch
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import committed_ids, delivered_ids, publish, publish_in
from tests.fixtures.interleave import before_words
from tests.fixtures.ledger import execute
from tests.fixtures.moves import move_by_hand
from tests.fixtures.retained import age, batch_facts, deliver, with_settings
from tests.fixtures.snapshots import delivered_once

HOUR = timedelta(hours=1)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prune goes on at once after each step: nobody is delivering here."""
    monkeypatch.setattr("outbox_pipeline.operations.retention._REST", 0)


def test_a_clock_that_is_ahead_deletes_nothing_young(stores: Stores) -> None:
    """What is old is so by two clocks: where the other one has not come so far, batches, events and fences stay."""
    publish(stores.engine, 3)
    publish(stores.engine, 2, context="[1]")
    relay(stores, until_empty=True)
    quarantine.discard(stores.engine, Filter(), note="test")
    age(stores)
    right = datetime.now(UTC)
    behind = right - timedelta(days=10)
    with stores.engine.begin() as connection:
        seen = read_batch(connection, connection.scalar(text("SELECT batch_id FROM outbox.batch")))
        kept = [
            store.old_batches(connection, now=behind, days=14, after=None, limit=10),
            store.lock_old(connection, seen, now=behind, days=14),
            store.prune_discarded(connection, now=behind, days=14, limit=10),
            store.count_old_discarded(connection, now=behind, days=14),
        ]
        gone = [
            len(store.old_batches(connection, now=right, days=14, after=None, limit=10)),
            store.lock_old(connection, seen, now=right, days=14),
            store.count_old_discarded(connection, now=right, days=14),
            store.prune_discarded(connection, now=right, days=14, limit=10),
        ]
    raise_fence(stores.client, seen.batch_id, 2)

    assert kept == [[], False, (0, 0), 0]
    assert gone == [1, True, 2, (2, 2)]
    assert [len(old_fences(stores.client, now=at, days=0, after=FIRST, limit=9)) for at in (behind, right + HOUR)] == [
        0,
        1,
    ]


def test_delivered_events_are_pruned_after_the_retention(stores: Stores) -> None:
    """Old events leave PostgreSQL, the ledger and ClickHouse keep what they know of them; younger events stay."""
    old = deliver(stores)
    young = publish(stores.engine, 4)
    relay(stores, until_empty=True)

    done = prune(stores)

    assert (done.batches, done.events, done.skipped, done.is_finished) == (1, 10, (), True)
    assert committed_ids(stores.engine) == set(young)
    assert set(delivered_ids(stores.client)) == {*old, *young}
    assert batch_facts(stores) == [("processed", True), ("processed", False)]
    assert done.oldest_kept_at is not None
    assert prune(stores).batches == 0


def test_a_prune_notes_that_it_has_proved_the_batch(stores: Stores) -> None:
    """The ledger keeps when ClickHouse last showed the batch: right before its events went."""
    deliver(stores)

    prune(stores)

    with stores.engine.begin() as connection:
        statement = text("SELECT proved_at > now() - interval '1 day' AND proved_at <= pruned_at FROM outbox.batch")
        assert connection.scalar(statement)


def test_a_batch_delivered_again_lately_stays(stores: Stores) -> None:
    """The retention counts from the last delivery: an old event that was delivered yesterday is kept."""
    deliver(stores)
    execute(stores.engine, "UPDATE outbox.batch SET processed_at = now() - interval '1 day'")

    assert prune(stores).batches == 0
    assert len(committed_ids(stores.engine)) == 10


def test_without_a_retention_everything_is_kept(stores: Stores) -> None:
    """OUTBOX_RETENTION_DAYS=0 prunes nothing."""
    deliver(stores)

    done = prune(with_settings(stores, retention_days=0))

    assert (done.batches, done.events, done.is_finished) == (0, 0, True)
    assert len(committed_ids(stores.engine)) == 10


def test_a_dry_run_changes_nothing(stores: Stores) -> None:
    """It counts what would go and names what would be refused, and both sides stay as they are."""
    deliver(stores)
    deliver(stores, 3)
    stores.client.run("DELETE FROM {table:Identifier} WHERE position = 12", settings={"mutations_sync": 2})

    done = prune(stores, dry_run=True)

    assert (done.batches, done.events, done.reasons) == (1, 10, {"differs in ClickHouse": 1})
    assert len(committed_ids(stores.engine)) == 13
    assert batch_facts(stores) == [("processed", False)] * 2


def unclaimed(stores: Stores) -> None:
    """Publish events that no batch has taken yet."""
    publish(stores.engine, 2)


def parked(stores: Stores) -> None:
    """Park a batch."""
    in_flight(stores)
    move_by_hand(stores.engine, "UPDATE outbox.batch SET status = 'parked' WHERE status = 'cut'")


def in_flight(stores: Stores) -> None:
    """Cut a batch and leave it."""
    publish(stores.engine, 2)
    cut_batches(stores.engine, stores.settings, limit=1)
    age(stores)


def sent_again(stores: Stores) -> None:
    """Let a run hold a batch that was processed before."""
    deliver(stores, 2)
    move_by_hand(
        stores.engine,
        "UPDATE outbox.batch SET status = 'delivering', holder = 'somebody', lease_until = now()"
        " WHERE batch_id = (SELECT batch_id FROM outbox.batch ORDER BY batch_id DESC LIMIT 1)",
    )


@delivered_once
def held(stores: Stores) -> None:
    """Publish events that validation refuses, with some that it does not."""
    publish(stores.engine, 2, context="[]")
    relay(stores, until_empty=True)
    age(stores)


def requeued(stores: Stores) -> None:
    """Give refused events back to delivery."""
    held(stores)
    quarantine.requeue(stores.engine, Filter())
    age(stores)


@pytest.mark.parametrize("kind", [unclaimed, in_flight, parked, sent_again, held, requeued])
def test_what_is_not_delivered_is_never_pruned(stores: Stores, kind: Callable[[Stores], None]) -> None:
    """However old: events that are unclaimed, in flight, parked, sent again, held or requeued stay."""
    delivered = set(deliver(stores))
    kind(stores)

    done = prune(stores)

    assert done.refused == ()
    assert done.events == len(delivered)
    left = committed_ids(stores.engine)
    assert len(left) == 2
    assert not left & delivered


def test_an_event_in_a_gap_is_never_pruned(stores: Stores) -> None:
    """An event that commits after its neighbours were delivered and pruned is delivered all the same."""
    with stores.engine.connect() as late, late.begin():
        (waiting,) = publish_in(late, 1)
        delivered = deliver(stores)
        assert prune(stores).events == 10
    relay(stores, until_empty=True)

    assert set(delivered_ids(stores.client)) == {waiting, *delivered}
    assert committed_ids(stores.engine) == {waiting}


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("UPDATE outbox.unclaimed SET positions = positions + '{[3,4)}'", "unclaimed"),
        ("INSERT INTO outbox.gap (positions, holders) VALUES ('{[3,4)}', '{}')", "a gap"),
        (
            "INSERT INTO outbox.quarantined_event (position, event_id, event_type, batch_id, reasons)"
            " SELECT 3, gen_random_uuid(), 't', batch_id, '{by_hand}' FROM outbox.batch",
            "quarantine",
        ),
    ],
)
def test_a_batch_whose_positions_are_elsewhere_too_is_refused(stores: Stores, statement: str, where: str) -> None:
    """What somebody put back by hand is still to be delivered, so its event must not go."""
    deliver(stores)
    execute(stores.engine, statement)

    (skipped,) = prune(stores).refused

    assert skipped.reason == Reason.ELSEWHERE
    assert where in skipped.detail
    assert len(committed_ids(stores.engine)) == 10


@pytest.mark.parametrize(
    "break_it",
    [
        "DELETE FROM {table:Identifier} WHERE position = 3",
        "ALTER TABLE {table:Identifier} UPDATE event_context = '{}' WHERE position = 3",
        "INSERT INTO {table:Identifier} SELECT * FROM {table:Identifier} WHERE position = 3",
        "ALTER TABLE {table:Identifier} UPDATE generation = 7 WHERE position = 3",
    ],
)
def test_a_batch_that_clickhouse_does_not_show_is_refused(stores: Stores, break_it: str) -> None:
    """Its events are the last copy: they stay, the line says what to do, and other batches go on."""
    deliver(stores)
    deliver(stores, 5)
    stores.client.run(break_it, settings={"mutations_sync": 2})

    done = prune(stores)

    (skipped,) = done.refused
    assert skipped.reason == Reason.DIFFERS
    assert "prove the day" in skipped.detail
    assert done.events == 5
    assert len(committed_ids(stores.engine)) == 10


def test_a_pruned_batch_has_no_second_look(stores: Stores) -> None:
    """It could not be sent again: looking would fail again and again, and keep others from theirs."""
    deliver(stores)
    execute(stores.engine, "UPDATE outbox.batch SET attempt = 2, proved_at = processed_at")
    due = rechecks_due(stores)

    execute(stores.engine, "UPDATE outbox.batch SET pruned_at = now()")

    assert len(due) == 1
    assert rechecks_due(stores) == []


def test_the_table_refuses_to_let_a_pruned_batch_go(stores: Stores) -> None:
    """Whatever statement tries: a pruned batch stays processed."""
    deliver(stores)
    prune(stores)

    with pytest.raises(IntegrityError, match="batch_stays_processed_when_pruned"):
        execute(stores.engine, "UPDATE outbox.batch SET status = 'failed'")


def test_a_prune_stops_when_its_time_is_over(stores: Stores) -> None:
    """It ends between two batches, says that it did, and the next one goes on."""
    for _ in range(3):
        deliver(stores)

    first = prune(stores, seconds=0)
    second = prune(stores)

    assert (first.batches, first.is_finished) == (1, False)
    assert (second.batches, second.is_finished) == (2, True)


def test_a_prune_gives_up_after_many_refusals(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """When ClickHouse shows batch after batch differently, somebody must look before more time is spent."""
    monkeypatch.setattr("outbox_pipeline.operations.retention.MAX_REFUSED", 2)
    for _ in range(3):
        deliver(stores, 1)
    stores.client.run("DELETE FROM {table:Identifier} WHERE 1", settings={"mutations_sync": 2})

    done = prune(stores)

    assert (len(done.refused), done.is_finished) == (2, False)
    assert MAX_REFUSED == 100


def test_discarded_events_are_pruned_too(stores: Stores) -> None:
    """What was given up long ago goes; what was given up yesterday stays, and its story stays in quarantine."""
    held(stores)
    with stores.engine.begin() as connection:
        positions = list(connection.execute(text("SELECT position FROM outbox.quarantined_event")).scalars())
    quarantine.discard(stores.engine, Filter(quarantine_ids=frozenset({1})), note="nobody needs it")
    age(stores)
    quarantine.discard(stores.engine, Filter(), note="nobody needs it either")

    assert prune(stores, dry_run=True).discarded == 1
    done = prune(stores)

    with stores.engine.begin() as connection:
        left = list(connection.execute(text("SELECT position FROM outbox.event")).scalars())
        marks = list(
            connection.execute(text("SELECT pruned_at IS NULL FROM outbox.quarantined_event ORDER BY 1")).scalars()
        )
    assert (done.discarded, done.batches) == (1, 1)
    assert (left, marks) == (positions[1:], [False, True])
    assert prune(stores).discarded == 0


def test_replaced_events_are_pruned_too(stores: Stores) -> None:
    """An event that a corrected one took the place of is as settled as a discarded one."""
    held(stores)
    wanted = Filter(quarantine_ids=frozenset({1}))
    quarantine.replace(stores.engine, wanted, prepare_event({"n": 1}, event_type="order_placed"))
    age(stores)

    assert prune(stores, dry_run=True).discarded == 1
    assert prune(stores).discarded == 1
    assert prune(stores).discarded == 0


def test_fences_of_pruned_batches_go(stores: Stores) -> None:
    """A fence is kept as long as its batch has its events, and longer when it is young or of an unknown batch."""
    for _ in range(3):
        deliver(stores, 1)
    with stores.engine.begin() as connection:
        ids = list(connection.execute(text("SELECT batch_id FROM outbox.batch ORDER BY batch_id")).scalars())
    unknown = UUID(int=7)
    for one in (*ids, unknown):
        raise_fence(stores.client, one, 2)
    old = "ALTER TABLE {fence:Identifier} UPDATE fenced_at = fenced_at - INTERVAL 30 DAY WHERE batch_id != {young:UUID}"
    stores.client.run(old, {"young": str(ids[1])}, settings={"mutations_sync": 2})
    execute(stores.engine, f"UPDATE outbox.batch SET processed_at = now() WHERE batch_id = '{ids[2]}'")

    done = prune(stores)

    fenced = {row["batch_id"] for row in stores.client.rows("SELECT batch_id FROM {fence:Identifier}")}
    assert (done.batches, done.fences) == (2, 1)
    assert fenced == {ids[1], ids[2], unknown}


def test_a_ledger_of_another_cluster_is_not_pruned(stores: Stores) -> None:
    """After a restore the events may be the only copy of what the old instance lost: nothing goes before adopt."""
    deliver(stores)
    execute(stores.engine, "UPDATE outbox.unclaimed SET timeline = timeline + 1")

    for dry_run in (True, False):
        with pytest.raises(LedgerError, match="another cluster"):
            prune(stores, dry_run=dry_run)
    assert len(committed_ids(stores.engine)) == 10


def test_deleting_by_hand_is_refused_for_each_kind_but_delivered_ones(stores: Stores) -> None:
    """The trigger is the last guard: no statement removes what is not processed or discarded."""
    deliver(stores, 3)
    held(stores)

    with pytest.raises(IntegrityError, match="not delivered yet"):
        execute(stores.engine, "DELETE FROM outbox.event")
    execute(stores.engine, "DELETE FROM outbox.event WHERE position <= 3")
    assert len(committed_ids(stores.engine)) == 2


def test_a_batch_that_can_never_be_whole_is_pruned_by_hand(stores: Stores) -> None:
    """The statements in operating.md prune one batch that ClickHouse will never show again, and no other."""
    deliver(stores)
    stores.client.run("DELETE FROM {table:Identifier} WHERE position = 3", settings={"mutations_sync": 2})
    other = deliver(stores, 2)
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    (statements,) = re.findall(r"```sql\nBEGIN;\n(.*?)COMMIT;\n```", page, re.DOTALL)
    (named,) = set(re.findall(r"'([0-9a-f-]{36})'", statements))
    (refused,) = prune(stores, dry_run=True).refused

    execute(stores.engine, statements.replace(named, str(refused.batch_id)))

    assert committed_ids(stores.engine) == set(other)
    assert prune(stores).refused == ()


def given_up(stores: Stores) -> None:
    """Publish events that are refused and discarded, in a batch that is pruned already."""
    held(stores)
    prune(stores)
    quarantine.discard(stores.engine, Filter(), note="nobody needs it")
    age(stores)


@pytest.mark.parametrize("kind", [deliver, given_up])
def test_a_failover_during_a_prune_stops_it(stores: Stores, kind: Callable[[Stores], object]) -> None:
    """Each step asks whose ledger it is, so no event goes after a failover that the prune began before."""
    kind(stores)
    before = committed_ids(stores.engine)
    failover = "UPDATE outbox.unclaimed SET timeline = timeline + 1"

    with (
        before_words(stores.engine, "SELECT outbox.batch.processed_at", lambda: execute(stores.engine, failover)),
        pytest.raises(LedgerError, match="another cluster"),
    ):
        prune(stores)

    assert before
    assert committed_ids(stores.engine) == before
