"""Reconciliation names what differs, with numbers, and repair leaves exactly the ledger's rows and nothing else."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text

from outbox_pipeline.batches import Batch, BatchStatus
from outbox_pipeline.clickhouse.reconcile import shown_proofs
from outbox_pipeline.days import Window
from outbox_pipeline.errors import BatchDataError, LedgerError
from outbox_pipeline.operations.reconcile import compare
from outbox_pipeline.operations.reconcile import untracked as operation
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.repair import differences_left, repair
from outbox_pipeline.operations.replay import Outcome, replay
from outbox_pipeline.postgres.cut import lock_unclaimed
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.reconcile import known_bounds
from outbox_pipeline.relay.attempts import start_unrequested
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import today
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import (
    BREAKAGES,
    Breakage,
    change,
    copy_rows,
    deliver_batches,
    forget,
    healthy_rows,
    prune,
    read_all,
)
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.moves import move_by_hand
from tests.fixtures.proofs import as_of_version_1
from tests.fixtures.snapshots import delivered_batches

TODAY = Window(today(), today())
YESTERDAY = Window(today() - timedelta(days=1), today() - timedelta(days=1))


@pytest.fixture
def batches(stores: Stores) -> list[Batch]:
    """Three processed batches of 100 events each; the middle one is the one to break."""
    return delivered_batches(stores)


def test_what_is_whole_is_clean(stores: Stores, batches: list[Batch]) -> None:
    """Nothing is found where nothing is wrong; the day's totals agree, and each batch is noted as proved now."""
    found = reconcile(stores, TODAY, by_type=True)

    (day,) = found.days
    assert (found.is_clean, day.batches, day.expected_rows, day.found_rows) == (True, 3, 300, 300)
    assert day.expected_checksum == day.found_checksum != "0" * 16
    assert [(totals.event_type, totals.expected, totals.found) for totals in found.types] == [
        ("order_placed", 300, 300)
    ]
    for before, after in zip(batches, read_all(stores.engine), strict=True):
        assert before.proved_at is not None
        assert after.proved_at is not None
        assert before.proved_at < after.proved_at


def test_a_day_without_batches_is_clean(stores: Stores, batches: list[Batch]) -> None:
    """A window with nothing in it has no days and no findings."""
    assert reconcile(stores, YESTERDAY).is_clean
    assert reconcile(stores, YESTERDAY).day(YESTERDAY.first_day).found_rows == 0


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES)
def test_a_broken_batch_is_named_and_repaired(stores: Stores, batches: list[Batch], breakage: Breakage) -> None:
    """One broken batch is found with its numbers; repair leaves exactly its rows and touches no other batch."""
    broken = batches[1].batch_id
    before = healthy_rows(stores.client, broken)
    breakage.do(stores.client, broken)

    found = reconcile(stores)
    done = repair(stores, found)

    (difference,) = found.differences
    assert difference.batch.batch_id == broken
    assert breakage.numbers == (
        difference.found,
        difference.missing,
        difference.doubled,
        difference.misplaced,
        difference.other_generation,
        difference.altered,
    )
    assert found.days[0].differing == 1
    assert (done.is_whole, [item.batch_id for item in done.redelivered]) == (True, [broken])
    assert healthy_rows(stores.client, broken) == before
    assert_each_exactly_once(stores.engine, stores.client)
    assert reconcile(stores).is_clean


def test_repairing_twice_changes_nothing(stores: Stores, batches: list[Batch]) -> None:
    """A second repair finds nothing, sends nothing and raises no generation."""
    BREAKAGES["missing rows"].do(stores.client, batches[1].batch_id)
    repair(stores, reconcile(stores))
    generations = [batch.generation for batch in read_all(stores.engine)]

    again = repair(stores, reconcile(stores))

    assert (again.batches, again.put_back, again.left) == ((), 0, ())
    assert [batch.generation for batch in read_all(stores.engine)] == generations == [0, 1, 0]


def test_what_another_run_has_repaired_is_left_alone(stores: Stores, batches: list[Batch]) -> None:
    """Two repairs from one finding: the second sees that the batch was sent again and does not touch it."""
    BREAKAGES["missing rows"].do(stores.client, batches[1].batch_id)
    found = reconcile(stores)
    repair(stores, found)

    again = repair(stores, found)

    assert [item.outcome for item in again.batches] == [Outcome.LEFT_ALONE]
    assert [batch.generation for batch in read_all(stores.engine)] == [0, 1, 0]


def test_an_altered_type_is_found_by_type(stores: Stores, batches: list[Batch]) -> None:
    """No proof of version 1 has the event type; comparing by type finds a changed one, and repair restores it."""
    as_of_version_1(stores.engine)
    change(
        stores.client,
        "INSERT INTO {table:Identifier} SELECT * REPLACE('other' AS event_type) FROM {table:Identifier}"
        " WHERE batch_id = {batch_id:UUID} AND position = 150",
        batches[1].batch_id,
    )
    change(
        stores.client,
        "DELETE FROM {table:Identifier}"
        " WHERE batch_id = {batch_id:UUID} AND position = 150 AND event_type = 'order_placed'",
        batches[1].batch_id,
    )

    assert reconcile(stores).is_clean
    found = reconcile(stores, by_type=True)
    repair(stores, found)

    (difference,) = found.differences
    assert (difference.batch.batch_id, difference.altered) == (batches[1].batch_id, "event types")
    assert [(item.event_type, item.expected, item.found) for item in found.types] == [
        ("order_placed", 300, 299),
        ("other", 0, 1),
    ]
    assert reconcile(stores, by_type=True).is_clean


def test_rows_of_an_unknown_batch_are_named_and_never_deleted(stores: Stores, batches: list[Batch]) -> None:
    """Rows under a batch id that no ledger knows are counted and left; only of doubles a statement is told.

    What it deletes stands under a batch of this ledger, by event id, whatever has become of the positions. Rows that
    are the only copy of their event stay, though they stand under the same batch.
    """
    unknown, theirs = uuid4(), "{batch_id:UUID} AS batch_id"
    moved, other = f"{theirs}, position + 5000 AS position", f"{theirs}, generateUUIDv4() AS event_id"
    copy_rows(stores.client, unknown, "position BETWEEN 101 AND 118", replaced=moved)
    copy_rows(stores.client, unknown, "position BETWEEN 119 AND 120", replaced=other)

    found = reconcile(stores)
    done = repair(stores, found)

    (rows,) = found.unknown
    assert (rows.batch_id, rows.row_count, rows.copies, rows.day) == (unknown, 20, 18, today())
    assert (found.days[0].is_whole, found.days[0].is_clean, found.days[0].unknown_rows) == (True, False, 20)
    assert done.batches == ()
    (left,) = done.left
    assert "of 20 events looked at, 18 also stand under batches that this ledger has delivered" in left
    change(stores.client, left.rpartition(": ")[2].replace("event_log", "{table:Identifier}"), unknown)
    (only,) = reconcile(stores).unknown
    assert (only.row_count, only.copies, only.removal) == (2, 0, "")
    assert "none" in only.sentence
    assert "leave them, because they may be the only copy" in only.sentence
    assert "DELETE" not in only.sentence


def test_a_pruned_batch_is_proved_and_not_sent_again(stores: Stores, batches: list[Batch]) -> None:
    """Pruned events cannot be sent: a whole batch is still proved, a broken one is named and stays processed."""
    pruned = batches[1]
    prune(stores.engine, pruned.batch_id)
    whole = reconcile(stores, by_type=True)
    BREAKAGES["missing rows"].do(stores.client, pruned.batch_id)

    found = reconcile(stores)
    done = repair(stores, found)

    assert whole.is_clean
    assert whole.days[0].pruned_batches == 1
    (difference,) = found.differences
    assert (difference.missing, "restore its rows in ClickHouse from a backup" in difference.sentence) == (3, True)
    assert (found.days[0].differing, found.days[0].differing_pruned, found.days[0].is_repairable) == (1, 1, False)
    assert [item.outcome for item in done.batches] == [Outcome.PRUNED]
    assert "pruned" in done.left[0]
    left = differences_left(stores, found)
    assert difference.sentence in left[0]
    assert not any("--repair" in sentence for sentence in left)
    assert read_all(stores.engine)[1].status == BatchStatus.PROCESSED


@pytest.mark.parametrize("reload", [False, True])
def test_a_replay_never_takes_a_pruned_batch(stores: Stores, batches: list[Batch], reload: bool) -> None:
    """Whole or not, asked to reload or not: a pruned batch is proved, refused, and never leaves processed."""
    prune(stores.engine, batches[1].batch_id)
    pruned = read_all(stores.engine)[1]

    (whole,) = replay(stores, [pruned], reload=reload)
    BREAKAGES["missing rows"].do(stores.client, pruned.batch_id)
    (broken,) = replay(stores, [pruned], reload=reload)
    (unaware,) = replay(stores, [batches[1]], reload=True)

    assert (whole.outcome, broken.outcome, unaware.outcome) == (Outcome.PROVEN, Outcome.PRUNED, Outcome.PRUNED)
    assert "pruned" in broken.detail
    with pytest.raises(BatchDataError, match="pruned"):
        start_unrequested(stores, pruned.batch_id)
    assert read_all(stores.engine)[1].status == BatchStatus.PROCESSED


def test_untracked_events_are_put_back_and_delivered(stores: Stores, batches: list[Batch]) -> None:
    """An event that is in no place is found with its position; repair makes it unclaimed, and the next cut takes it."""
    publish(stores.engine, 5)
    forget(stores.engine, "{[301,304)}")

    found = reconcile(stores)
    done = repair(stores, found)
    relay(stores, until_empty=True)

    (item,) = found.untracked
    assert (item.event_count, item.positions, found.is_clean) == (3, "{[301,304)}", False)
    assert (done.put_back, done.is_whole) == (3, True)
    assert_each_exactly_once(stores.engine, stores.client)
    assert reconcile(stores).is_clean


def test_events_in_their_places_are_not_untracked(stores: Stores, batches: list[Batch]) -> None:
    """Unclaimed, passed over, in an open batch, held or discarded: none of these is put back."""
    publish(stores.engine, 2, context="[]")
    relay(stores, until_empty=True)
    with stores.engine.begin() as connection:
        connection.execute(
            text("UPDATE outbox.quarantined_event SET status = 'discarded', resolved_at = now() WHERE position = 301")
        )
    publish(stores.engine, 3)
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.unclaimed SET positions = positions - '{[303,304)}'::int8multirange"))
        connection.execute(text("INSERT INTO outbox.gap (positions, holders) VALUES ('{[303,304)}', '{x}')"))

    found = reconcile(stores)

    assert (found.untracked, found.days[0].held_events) == ((), 1)
    assert repair(stores, found).put_back == 0


def test_two_put_backs_at_once_put_a_position_back_once(
    stores: Stores, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody else puts back and cuts between the look and the lock is left where it is."""
    publish(stores.engine, 5)
    forget(stores.engine, "{[301,304)}")
    found = reconcile(stores)

    def lock_late(connection: Connection) -> None:
        monkeypatch.setattr(operation, "lock_unclaimed", lock_unclaimed)
        repair(stores, found)
        relay(stores, until_empty=True)
        lock_unclaimed(connection)

    monkeypatch.setattr(operation, "lock_unclaimed", lock_late)
    late = repair(stores, found)

    assert late.put_back == 0
    with stores.engine.begin() as connection:
        assert connection.scalar(text("SELECT positions::text FROM outbox.unclaimed")) == "{[306,)}"
    assert_each_exactly_once(stores.engine, stores.client)


def test_nothing_is_put_back_into_a_ledger_of_another_cluster(stores: Stores, batches: list[Batch]) -> None:
    """A failover between the look and the repair: what is in no place here may have been delivered there."""
    publish(stores.engine, 3)
    forget(stores.engine, "{[301,304)}")
    found = reconcile(stores)
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.unclaimed SET timeline = timeline + 1"))

    with pytest.raises(LedgerError, match="outbox adopt"):
        repair(stores, found)

    with stores.engine.begin() as connection:
        assert connection.scalar(text("SELECT positions::text FROM outbox.unclaimed")) == "{[304,)}"


def test_events_hiding_in_an_old_batch_are_found(stores: Stores, batches: list[Batch]) -> None:
    """After the sequence went back, events at positions of a pruned batch are named; only a repair has them cut."""
    prune(stores.engine, batches[1].batch_id)
    with stores.engine.begin() as connection:
        connection.execute(text("SELECT setval('outbox.event_position_seq', 110)"))
    publish(stores.engine, 4)

    found = reconcile(stores)

    (late,) = found.late
    assert (late.batch_id, late.event_count, found.is_clean) == (batches[1].batch_id, 4, False)
    assert any("setval" in sentence for sentence in differences_left(stores, found))
    assert (repair(stores, found).moved, relay(stores, until_empty=True).delivered_count) == (4, 4)
    assert reconcile(stores).is_clean


def test_a_clock_that_was_set_back_makes_no_event_late(stores: Stores) -> None:
    """Events stamped ahead of the cut are the batch's own: who was told to publish them again would double them."""
    with stores.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO outbox.event (event_type, environment, event_context, recorded_at)"
                " SELECT 'order_placed', 'test', '{}', now() + interval '1 minute' FROM generate_series(1, 5)"
            )
        )
    publish(stores.engine, 5)
    relay(stores, until_empty=True)

    found = reconcile(stores, by_type=True)

    assert (found.late, found.is_clean) == ((), True)


def test_batches_under_way_are_no_differences(stores: Stores, batches: list[Batch]) -> None:
    """A batch that is being delivered again while both sides are compared is counted as on its way."""
    BREAKAGES["half a batch"].do(stores.client, batches[1].batch_id)
    delivery = start_unrequested(stores, batches[1].batch_id)

    found = reconcile(stores)
    delivery.close()

    assert (found.differences, found.days[0].open_batches, found.days[0].batches) == ((), 1, 2)


def test_a_batch_replayed_meanwhile_is_no_difference(
    stores: Stores, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that gets a new generation between the look into the ledger and into ClickHouse is asked for again."""

    def ask_late(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(compare, "shown_proofs", shown_proofs)
        list(replay(stores, [batches[1]], reload=True))
        return shown_proofs(*arguments, **options)

    monkeypatch.setattr(compare, "shown_proofs", ask_late)
    found = reconcile(stores)

    assert (found.is_clean, found.days[0].batches) == (True, 3)
    assert read_all(stores.engine)[1].generation == 1


def test_a_parked_batch_keeps_its_day_from_being_whole(stores: Stores, batches: list[Batch]) -> None:
    """A day with a parked batch is not whole, and the way on is named."""
    parked = "UPDATE outbox.batch SET status = 'parked' WHERE batch_id = :batch_id"
    move_by_hand(stores.engine, parked, {"batch_id": batches[1].batch_id})

    found = reconcile(stores)

    assert (found.days[0].parked_batches, found.is_clean) == (1, False)
    assert "outbox resume" in repair(stores, found).left[0]


def test_many_batches_are_compared_in_few_queries(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of queries they are spread over, the same batches are found to differ."""
    monkeypatch.setattr(compare, "_MAX_BATCHES", 3)
    batches = deliver_batches(stores, (5,) * 8)
    for broken in (batches[1], batches[6]):
        change(stores.client, "DELETE FROM {table:Identifier} WHERE batch_id = {batch_id:UUID}", broken.batch_id)

    found = reconcile(stores)

    assert [item.batch.batch_id for item in found.differences] == [batches[1].batch_id, batches[6].batch_id]
    assert (found.days[0].batches, found.days[0].expected_rows, found.days[0].found_rows) == (8, 40, 30)


def test_a_ledger_of_another_cluster_is_not_compared(stores: Stores, batches: list[Batch]) -> None:
    """Rows that the old instance delivered would all be called unknown, with the advice to delete them."""
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.unclaimed SET timeline = timeline + 1"))

    with pytest.raises(LedgerError, match="outbox adopt"):
        reconcile(stores)


def test_the_ledger_is_asked_about_any_number_of_batches(stores: Stores, batches: list[Batch]) -> None:
    """More ids at once than a statement has parameters for: what a sweep of a large table asks."""
    wanted = [uuid4() for _ in range(70_000)] + [batches[1].batch_id]

    with ledger_transaction(stores.engine) as connection:
        known = known_bounds(connection, wanted)

    assert known == {batches[1].batch_id: (101, 200, False)}
