"""After a restore or in a clone, nothing that the old instance delivered is delivered again, and nothing is lost.

"There" is the instance that went on after the backup, "here" the one that was restored from it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from outbox_pipeline.batches import BatchStatus, Lease
from outbox_pipeline.clickhouse import batch_rows, load
from outbox_pipeline.clickhouse.deadline import read_deadline
from outbox_pipeline.errors import FencedError, LedgerError
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.operations.adopt import MAX_SAMPLES, adopt
from outbox_pipeline.operations.replay import Outcome, replay
from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.relay.attempts import request_batches, start_unrequested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, committed_ids, publish, publish_in
from tests.fixtures.instances import Restore, all_batches, assert_whole, back_up, cloned, mixed_instances, value
from tests.fixtures.owners import identity_of
from tests.fixtures.servers import Servers
from tests.fixtures.snapshots import delivered_batches

pytestmark = pytest.mark.embedded_only


def claimed_twice(stores: Stores) -> object:
    """Return how many batches have positions that are unclaimed or in a gap too; a cut would heal that silently."""
    pending = "(SELECT positions FROM outbox.unclaimed UNION ALL SELECT positions FROM outbox.gap)"
    return value(
        stores, f"SELECT count(*) FROM outbox.batch JOIN {pending} AS place ON place.positions && batch.positions"
    )


def test_a_restored_ledger_stops_until_it_is_adopted(stores: Stores, restore: Restore, backup: Path) -> None:
    """Nothing is cut, requested or taken over from a restored ledger; the error and doctor name the command."""
    publish(stores.engine, 2)
    cut_batches(stores.engine, stores.settings, limit=1)
    here = restore(back_up(stores, backup))
    (in_flight,) = all_batches(here)
    (ledger,) = [check for check in examine(here.settings) if check.name == "ledger"]

    for go_on in (
        lambda: cut_batches(here.engine, here.settings, limit=1),
        lambda: request_batches(here.engine, here.settings, limit=1),
        lambda: start_unrequested(here, in_flight.batch_id),
    ):
        with pytest.raises(LedgerError, match="outbox adopt"):
            go_on()
    assert not ledger.ok
    assert "outbox adopt" in ledger.message


def test_what_the_other_life_delivered_is_not_delivered_again(stores: Stores, restore: Restore, backup: Path) -> None:
    """Events pending in the backup and delivered there are processed here; those published later there are reported."""
    delivered_batches(stores, (5,))
    publish(stores.engine, 4)
    back_up(stores, backup)
    lost = set(publish(stores.engine, 3))
    relay(stores, until_empty=True)
    lost |= set(publish(stores.engine, 2))
    relay(stores, until_empty=True)
    here = restore(backup)
    # Published before anybody adopts: these take positions that lost events have in ClickHouse.
    publish(here.engine, 2)

    result = adopt(here)
    overlapping = claimed_twice(here)
    delivered = relay(here, until_empty=True).delivered_count

    assert overlapping == 0
    assert (result.adopted_batches, result.adopted_events, result.unfinished_batches) == (1, 4, 0)
    assert (result.strange_batches, result.strange_rows) == (2, 5)
    assert {row.event_id for row in result.strange_samples} == lost
    assert (result.incomplete_batches, result.doubled_events) == (0, 0)
    assert delivered == 2
    assert_whole(here, lost=lost)


def test_of_many_lost_events_some_are_named(stores: Stores, restore: Restore, backup: Path) -> None:
    """At positions of other events here, beyond all of them, and in several batches: all are counted, ten are named."""
    publish(stores.engine, 1)
    back_up(stores, backup)
    lost: set[UUID] = set()
    for _ in range(3):
        lost |= set(publish(stores.engine, 2 * MAX_SAMPLES))
        relay(stores, until_empty=True)
    here = restore(backup)
    publish(here.engine, 25)

    result = adopt(here)

    assert (result.strange_rows, len(result.strange_samples)) == (6 * MAX_SAMPLES, MAX_SAMPLES)
    assert {row.event_id for row in result.strange_samples} <= lost


def test_new_positions_lie_beyond_those_of_lost_events(stores: Stores, restore: Restore, backup: Path) -> None:
    """After adopting, no event is given a position under which ClickHouse has another one."""
    publish(stores.engine, 2)
    back_up(stores, backup)
    lost = set(publish(stores.engine, 3))
    relay(stores, until_empty=True)
    here = restore(backup)

    result = adopt(here)
    publish(here.engine, 2)
    relay(here, until_empty=True)

    assert result.sequence_after > 5 > result.sequence_before
    positions = stores.client.rows("SELECT count() AS n, uniqExact(position) AS u FROM {table:Identifier}")[0]
    assert positions == {"n": 7, "u": 7}
    assert_whole(here, lost=lost)


def test_a_sequence_below_the_events_hides_no_delivery(stores: Stores) -> None:
    """A restore may set the sequence back below its own events; what ClickHouse has of them is known all the same."""
    delivered_batches(stores, (3,))
    with stores.engine.begin() as connection:
        connection.execute(text("DELETE FROM outbox.batch"))
        connection.execute(text("UPDATE outbox.unclaimed SET positions = '{[1,)}', timeline = timeline + 1"))
        connection.execute(text("SELECT setval('outbox.event_position_seq', 1)"))

    adopted = adopt(stores)
    publish(stores.engine, 1)
    relay(stores, until_empty=True)

    assert (adopted.adopted_events, adopted.strange_rows) == (3, 0)
    assert_each_exactly_once(stores.engine, stores.client)


def _lose_a_row(here: Stores) -> None:
    here.client.run("DELETE FROM {table:Identifier} WHERE position = 4", settings={"lightweight_deletes_sync": 2})


def _double_a_row(here: Stores) -> None:
    here.client.run("INSERT INTO {table:Identifier} SELECT * FROM {table:Identifier} WHERE position = 4")


@pytest.mark.parametrize("max_stretches", [1, batch_rows.MAX_FOREIGN_STRETCHES])
@pytest.mark.parametrize("damage", [_lose_a_row, _double_a_row])
def test_a_batch_of_both_kinds_can_be_repaired(
    stores: Stores,
    restore: Restore,
    backup: Path,
    damage: Callable[[Stores], None],
    max_stretches: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Adopted events of a mixed batch are proven and redelivered as any others; lost events' rows are never touched."""
    monkeypatch.setattr(batch_rows, "MAX_FOREIGN_STRETCHES", max_stretches)
    here, lost = mixed_instances(stores, restore, backup)
    kept = "SELECT * FROM {table:Identifier} WHERE position IN (1, 3, 5) ORDER BY position"
    before = here.client.rows(kept)

    result = adopt(here)
    assert_whole(here, lost=lost)
    damage(here)
    (repaired,) = replay(here, all_batches(here))
    (reloaded,) = replay(here, all_batches(here), reload=True)

    assert (result.adopted_events, result.strange_rows) == (2, 3)
    assert (repaired.outcome, reloaded.outcome) == (Outcome.REDELIVERED, Outcome.REDELIVERED)
    assert here.client.rows(kept) == before
    assert_whole(here, lost=lost)


@pytest.mark.parametrize("commits_before", [True, False])
def test_a_gap_of_the_other_life_is_settled(
    stores: Stores, restore: Restore, backup: Path, commits_before: bool
) -> None:
    """No old transaction holds a gap here: what the backup has of it is kept apart from what it does not have."""
    with stores.engine.connect() as never:
        publish_in(never)
        late = stores.engine.connect()
        ids = set(publish_in(late))
    publish(stores.engine, 3)
    relay(stores, until_empty=True)
    if commits_before:
        late.commit()
    back_up(stores, backup)
    late.commit()
    late.close()
    relay(stores, until_empty=True)
    here = restore(backup)

    result = adopt(here)
    overlapping = claimed_twice(here)
    delivered = relay(here, until_empty=True).delivered_count

    assert overlapping == 0
    assert (result.adopted_events, result.strange_rows) == ((1, 0) if commits_before else (0, 1))
    assert (delivered, value(here, "SELECT count(*) FROM outbox.gap")) == (0, 0)
    assert_whole(here, lost=set() if commits_before else ids)


def test_a_transaction_here_is_not_taken_for_a_holder_of_the_other_life(
    stores: Stores, restore: Restore, backup: Path
) -> None:
    """Virtual transaction ids of two clusters can be equal; a gap of the old instance waits for no transaction here."""
    with stores.engine.connect() as late:
        publish_in(late)
        publish(stores.engine, 3)
        relay(stores, until_empty=True)
        here = restore(back_up(stores, backup))
    with here.engine.connect() as publisher:
        publish_in(publisher)
        holders = "(SELECT array_agg(virtualtransaction) FROM pg_locks WHERE relation = 'outbox.event'::regclass)"
        with here.engine.begin() as connection:
            connection.execute(text(f"UPDATE outbox.gap SET holders = {holders}"))

        result = adopt(here)
        cut_batches(here.engine, here.settings, limit=1)

        assert (result.gap_count, value(here, "SELECT count(*) FROM outbox.gap")) == (1, 0)


def test_a_pending_gap_is_delivered_here(stores: Stores, restore: Restore, backup: Path) -> None:
    """An event that committed into a gap before the backup, and that nobody delivered, is delivered here."""
    with stores.engine.connect() as late:
        publish_in(late)
        publish(stores.engine, 3)
        relay(stores, until_empty=True)
        late.commit()
    here = restore(back_up(stores, backup))

    adopt(here)
    delivered = relay(here, until_empty=True).delivered_count

    assert delivered == 1
    assert_whole(here)


def test_a_batch_in_flight_is_taken_further_than_the_other_life_took_it(
    stores: Stores, restore: Restore, backup: Path
) -> None:
    """A batch cut in the backup and delivered there by later attempts and generations is found, not sent again."""
    publish(stores.engine, 3)
    cut_batches(stores.engine, stores.settings, limit=1)
    back_up(stores, backup)
    relay(stores)
    for _ in range(2):
        (there,) = all_batches(stores)
        deliver(start_unrequested(stores, there.batch_id), reload=True)
    here = restore(backup)
    before = here.client.rows("SELECT * FROM {table:Identifier} ORDER BY position")

    result = adopt(here)
    done = relay(here, until_empty=True)
    (batch,) = all_batches(here)

    assert (result.raised_batches, result.adopted_batches) == (2, 0)
    assert (done.delivered_count, done.failures) == (3, ())
    assert (batch.attempt, batch.generation) == (4, 2)
    assert here.client.rows("SELECT * FROM {table:Identifier} ORDER BY position") == before
    assert_whole(here)


def test_a_batch_in_flight_that_nobody_delivered_is_delivered_here(
    stores: Stores, restore: Restore, backup: Path
) -> None:
    """The first attempt here counts as a second one: it looks first, and fences what the old one may still send."""
    publish(stores.engine, 3)
    cut_batches(stores.engine, stores.settings, limit=1)
    here = restore(back_up(stores, backup))

    adopt(here)
    relay(here, until_empty=True)
    (batch,) = all_batches(here)

    with pytest.raises(FencedError):
        send_late(stores, batch.batch_id)
    assert_whole(here)


def send_late(there: Stores, batch_id: UUID) -> None:
    """Send a batch as the old instance's first attempt, frozen until now, would."""
    events = extract_events(there.engine, batch_id)
    body = load.as_arrow(events, generation=0)
    lease, identity = Lease(batch_id, 1, "frozen"), identity_of(there)
    not_after = read_deadline(there.client, there.settings.lease_seconds)
    load.insert_generation(there.client, body, lease=lease, identity=identity, not_after=not_after)


def test_a_late_insert_of_the_other_life_is_refused(stores: Stores, restore: Restore, backup: Path) -> None:
    """A request of the old instance that was frozen until after the adoption cannot double what was adopted."""
    publish(stores.engine, 3)
    here = restore(back_up(stores, backup))
    relay(stores, until_empty=True)
    (there,) = all_batches(stores)
    adopt(here)

    with pytest.raises(FencedError):
        send_late(stores, there.batch_id)
    assert_whole(here)


def test_a_batch_left_unfinished_there_is_finished_here(stores: Stores, restore: Restore, backup: Path) -> None:
    """A batch the old instance left with rows of two generations is adopted open, and a run here makes it right."""
    publish(stores.engine, 3)
    here = restore(back_up(stores, backup))
    relay(stores, until_empty=True)
    here.client.run(
        "INSERT INTO {table:Identifier} SELECT * REPLACE (generation + 1 AS generation) FROM {table:Identifier}"
        " WHERE position <> 2"
    )

    result = adopt(here)
    before = [batch.status for batch in all_batches(here)]
    relay(here, until_empty=True)

    assert (result.adopted_events, result.unfinished_batches) == (3, 1)
    assert before == [BatchStatus.CUT]
    assert_whole(here)


@pytest.mark.parametrize("is_judged_before", [True, False])
def test_an_event_requeued_by_the_other_life_is_not_delivered_again(
    stores: Stores, restore: Restore, backup: Path, is_judged_before: bool
) -> None:
    """Held in quarantine or in flight in the backup, an event that went on in another batch there is done here."""
    strict = replace(stores, settings=stores.settings.model_copy(update={"event_types": frozenset({"known"})}))
    publish(stores.engine, event_type="known")
    publish(stores.engine)
    cut_batches(stores.engine, stores.settings, limit=1)
    if not is_judged_before:
        back_up(stores, backup)
    relay(strict, until_empty=True)
    if is_judged_before:
        back_up(stores, backup)
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.quarantined_event SET status = 'requeued', resolved_at = now()"))
        connection.execute(text("UPDATE outbox.unclaimed SET positions = positions + '{[2,3)}'"))
    relay(stores, until_empty=True)
    here = restore(backup)

    result = adopt(here)
    relay(here, until_empty=True)

    assert (result.adopted_batches, result.adopted_events) == (1, 1)
    assert_whole(here)


def test_a_clone_stops_and_is_adopted_the_same_way(stores: Stores, servers: Servers) -> None:
    """Two databases of one cluster are two instances: a copy beside the original stops, and can be adopted."""
    delivered_batches(stores, (3,))
    publish(stores.engine, 4)
    with cloned(stores, servers) as here:
        relay(stores, until_empty=True)
        with pytest.raises(LedgerError, match="outbox adopt"):
            cut_batches(here.engine, here.settings, limit=1)

        result = adopt(here)
        publish(here.engine, 2)
        relay(here, until_empty=True)

        assert result.adopted_events == 4
        assert_whole(here)


def test_batches_that_clickhouse_lost_are_counted_for_a_replay(stores: Stores, restore: Restore, backup: Path) -> None:
    """What the ledger holds processed and ClickHouse does not show is left to a replay, and said."""
    delivered_batches(stores, (3,))
    publish(stores.engine, 2)
    relay(stores, until_empty=True)
    here = restore(back_up(stores, backup))
    here.client.run("DELETE FROM {table:Identifier} WHERE position = 2", settings={"lightweight_deletes_sync": 2})

    result = adopt(here)

    assert (result.incomplete_batches, result.adopted_batches, result.strange_rows) == (1, 0, 0)


_COPY = (
    "INSERT INTO {table:Identifier} SELECT * REPLACE (toUUID('00000000-0000-7000-8000-000000000000') AS batch_id)"
    " FROM {table:Identifier}"
)


@pytest.mark.parametrize("is_known", [True, False])
def test_events_delivered_twice_before_are_named(
    stores: Stores, restore: Restore, backup: Path, is_known: bool
) -> None:
    """When two instances delivered before anybody adopted, one batch gets the events and the doubles are reported."""
    publish(stores.engine, 3)
    if not is_known:
        back_up(stores, backup)
    relay(stores, until_empty=True)
    if is_known:
        back_up(stores, backup)
    stores.client.run(_COPY)
    here = restore(backup)

    result = adopt(here)
    delivered = relay(here, until_empty=True).delivered_count

    assert (result.adopted_events, result.doubled_events) == (0 if is_known else 3, 3)
    assert set(result.doubled_samples) == committed_ids(here.engine)
    assert delivered == 0
