"""`outbox log move`: the log gets a table with the current sorting key, and every row of before is in it, once.

Runs on a server that is given by URL as well.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text

from outbox_pipeline.batches import Batch, BatchStatus, Lease
from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.clickhouse.deadline import read_deadline
from outbox_pipeline.clickhouse.load import as_arrow, insert_generation
from outbox_pipeline.clickhouse.log_move.shape import shapes_from
from outbox_pipeline.clickhouse.log_move.tables import prefix_of_before, prefix_of_moving
from outbox_pipeline.clickhouse.schema import read_log
from outbox_pipeline.clickhouse.sources import serves_one
from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.errors import ConfigurationError, FencedError, OutboxError, TransientError
from outbox_pipeline.operations import retention
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.log_move import move as moves
from outbox_pipeline.operations.log_move.copying import Copying
from outbox_pipeline.operations.log_move.move import Moved, abandon_move, move_log
from outbox_pipeline.operations.log_move.plan import plan_move
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.replay import replay
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.postgres.leases import resume_parked
from outbox_pipeline.postgres.log_move import read_move, take_move, wait_alone
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, delivered_ids, publish
from tests.fixtures.instances import all_batches
from tests.fixtures.mover import moving
from tests.fixtures.old_log import turn_into_log_of_before
from tests.fixtures.owners import identity_of
from tests.fixtures.proxy import Fault, FaultyProxy, through
from tests.fixtures.retained import age
from tests.fixtures.snapshots import delivered_batches

UNKNOWN = UUID("00000000-0000-7000-8000-000000000000")

Row = dict[str, object]


def send(stores: Stores, count: int = 5) -> None:
    """Publish events and deliver them in a batch."""
    publish(stores.engine, count)
    relay(stores, until_empty=True)


def all_rows(stores: Stores, table: str = "event_log") -> list[Row]:
    """Return every column of every row."""
    return stores.client.rows("SELECT * FROM {name:Identifier} ORDER BY batch_id, position, event_id", {"name": table})


@pytest.fixture
def old(stores: Stores) -> Stores:
    """A log with the key of before, with two batches and rows of one that the ledger does not know."""
    delivered_batches(stores, (30, 20))
    turn_into_log_of_before(stores.client, with_owner=True)
    create_table(stores.client)
    stores.client.run(
        "INSERT INTO {table:Identifier} SELECT * REPLACE ({unknown:UUID} AS batch_id, generateUUIDv4() AS event_id)"
        " FROM (SELECT * FROM {table:Identifier} WHERE position <= 5)",
        {"unknown": str(UNKNOWN)},
    )
    return stores


def without_unknown(stores: Stores) -> None:
    """Delete what the ledger does not know, to compare both sides by their ids."""
    stores.client.run("DELETE FROM {table:Identifier} WHERE batch_id = {unknown:UUID}", {"unknown": str(UNKNOWN)})


def assert_moved(stores: Stores, before: list[Row]) -> None:
    """Check that the log has its new key and each row of before, and each event once."""
    assert not serves_one(read_log(stores.client))
    ids = {row["batch_id"] for row in before}
    assert [row for row in all_rows(stores) if row["batch_id"] in ids] == before
    assert shapes_from(stores.client, prefix_of_moving(stores.client)) == {}
    without_unknown(stores)
    assert_each_exactly_once(stores.engine, stores.client)


def test_every_row_is_moved(old: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of batches that are pruned, redelivered, kept and unknown, and of days; both tables of before are left over."""
    monkeypatch.setattr(retention, "_REST", 0)
    (_, second) = all_batches(old)
    assert [done.outcome for done in replay(old, [second], reload=True)] == ["redelivered"]
    record_completeness(old)
    days = old.client.rows("SELECT * FROM {delivered:Identifier} ORDER BY day")
    before = all_rows(old)
    age(old)
    with old.engine.begin() as connection:
        connection.execute(
            text("UPDATE outbox.batch SET processed_at = now() WHERE batch_id = :kept"), {"kept": second.batch_id}
        )
    assert retention.prune(old).batches == 1
    plan = plan_move(old)

    moved = move_log(old)

    assert (plan.row_count, plan.batch_count, plan.unknown_rows, plan.is_moved) == (55, 3, 5, False)
    assert all_rows(old) == before
    assert old.client.rows("SELECT * FROM {delivered:Identifier} ORDER BY day") == days
    assert moved.before is not None
    assert all_rows(old, moved.before) == before
    assert (moved.was_moved, moved.differing, serves_one(read_log(old.client))) == (False, (), False)
    send(old)
    found = reconcile(old)
    assert (found.differences, found.unknown_batches) == ((), 1)
    assert move_log(old).was_moved


def test_a_log_that_is_altered_by_its_users_is_moved_with_all_that(old: Stores) -> None:
    """Columns, computed ones, an index, a projection and comments of theirs; a view goes on with the new table."""
    for statement in (
        "ALTER TABLE {table:Identifier} ADD COLUMN mine Nullable(String) DEFAULT event_type COMMENT 'it''s'",
        "ALTER TABLE {table:Identifier} ADD COLUMN length UInt64 MATERIALIZED length(event_context)",
        "ALTER TABLE {table:Identifier} ADD INDEX of_mine mine TYPE set(10) GRANULARITY 1",
        "ALTER TABLE {table:Identifier} MODIFY SETTING lightweight_mutation_projection_mode = 'rebuild'",
        "ALTER TABLE {table:Identifier} ADD PROJECTION types (SELECT event_type, count() GROUP BY event_type)",
        "ALTER TABLE {table:Identifier} MODIFY COMMENT 'ours, ORDER BY (event_type)'",
        "CREATE TABLE seen (event_id UUID) ENGINE = MergeTree ORDER BY event_id"
        " SETTINGS non_replicated_deduplication_window = 100",
        "CREATE MATERIALIZED VIEW seeing TO seen AS SELECT event_id FROM event_log",
    ):
        old.client.run(statement)
    asked = (
        "SELECT create_table_query AS said FROM system.tables"
        " WHERE database = currentDatabase() AND name = {table:String}"
    )
    (said,) = old.client.rows(asked)
    before = all_rows(old)

    moved = move_log(old)

    (now,) = old.client.rows(asked)
    assert now["said"] == said["said"].replace("ORDER BY (event_type, ev", "ORDER BY (source, event_type, ev")
    assert all_rows(old) == before
    assert old.client.rows("SELECT count() AS seen FROM seen") == [{"seen": 0}]
    assert moved.differing == ()
    send(old, 7)
    assert old.client.rows("SELECT count() AS seen, uniqExact(event_id) AS ids FROM seen") == [{"seen": 7, "ids": 7}]


def test_a_move_that_is_killed_goes_on(old: Stores) -> None:
    """Killed behind one statement or commit after the other, with deliveries in between: nothing lost or doubled."""
    before = all_rows(old)
    kills = 0
    with ThreadPoolExecutor(1) as others:
        while kills < 60:
            with moving(old, kill_after=kills % 30 + 1) as mover:
                said = mover.result()
            if said is not None:
                break
            kills += 1
            # Where the tables were being exchanged nothing is delivered until the next run.
            others.submit(publish, old.engine, 1).result()
            if kills % 5 == 0 and read(old) is None:
                relay(old, until_empty=True)

    assert isinstance(said, Moved), said
    assert kills >= 10
    relay(old, until_empty=True)
    assert_moved(old, before)


def read(stores: Stores) -> object:
    """Return since when the tables are being exchanged."""
    with ledger_transaction(stores.engine) as connection:
        return read_move(connection).exchange_at


def test_an_insert_held_across_the_exchange_lands_nowhere(old: Stores, proxy: FaultyProxy) -> None:
    """The new table has forgotten its token, so the fence refuses the repeated insert of a batch that is delivered."""
    batch = all_batches(old)[1]
    distant = open_client(through(proxy, old.settings))
    held = proxy.inject(Fault.HOLD_REQUEST)
    deadline = read_deadline(old.client, 600)

    def repeat() -> None:
        insert_generation(
            distant,
            as_arrow(extract_events(old.engine, batch.batch_id), 0),
            lease=Lease(batch.batch_id, batch.attempt, "late"),
            identity=identity_of(old),
            not_after=deadline,
        )

    before = all_rows(old)
    with ThreadPoolExecutor(1) as workers:
        late = workers.submit(repeat)
        held.wait_reached()
        moved = move_log(old)
        held.release()
        with pytest.raises(FencedError):
            late.result()

    distant.close()
    assert not moved.was_moved
    assert_moved(old, before)


def test_a_late_exchange_finds_no_table(old: Stores, proxy: FaultyProxy) -> None:
    """Its process is dead and deliveries are held back until the next run, which makes sure that it finds none."""
    before = all_rows(old)
    held = proxy.inject(Fault.HOLD_REQUEST, "EXCHANGE TABLES")
    with moving(old, settings=through(proxy, old.settings)) as mover:
        held.wait_reached()
        mover.kill()
    publish(old.engine, 3)
    with pytest.raises(TransientError, match="run it again, and it goes on"):
        relay(old)

    moved = move_log(old)
    send(old)
    held.release()

    assert not moved.was_moved
    assert_moved(old, before)


@contextmanager
def delivering(stores: Stores) -> Iterator[Batch]:
    """Have an attempt at work on a new batch, for the length of a block; then it delivers the batch."""
    publish(stores.engine, 4)
    cut_batches(stores.engine, stores.settings, limit=1)
    (request,) = request_batches(stores.engine, stores.settings, limit=1)
    delivery = start_requested(stores, request.batch_id, request.attempt)
    try:
        yield delivery.batch()
    finally:
        deliver(delivery)


def test_a_delivery_at_work_is_waited_for(old: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A last pass that waits too long for it lets deliveries go on; when it has ended, the log is moved with it."""
    before = all_rows(old)
    waiting: list[str] = []
    with ThreadPoolExecutor(1) as workers, delivering(old):
        monkeypatch.setattr(moves, "_pause_of", lambda tries: waiting.append("let go") or 0.05)
        moved = workers.submit(move_log, old, max_pause_seconds=0.2)
        while not waiting:
            assert not moved.done(), moved.result()
        assert serves_one(read_log(old.client))

    assert moved.result().tries > 1
    assert_moved(old, before)


def test_no_attempt_begins_in_a_last_pass(old: Stores) -> None:
    """Neither a requested one nor one of a replay; nothing is cut; they wait, and say what for when it takes long."""
    publish(old.engine, 2)
    cut_batches(old.engine, old.settings, limit=1)
    (request,) = request_batches(old.engine, old.settings, limit=1)
    hurried = replace(old, settings=old.settings.model_copy(update={"lock_timeout_seconds": 0.1}))
    with ledger_transaction(old.engine, idle_seconds=0) as connection:
        wait_alone(connection)
        publish(old.engine, 1)
        with pytest.raises(TransientError, match="they go on by themselves"):
            cut_batches(hurried.engine, hurried.settings, limit=1)
        with pytest.raises(TransientError, match="they go on by themselves"):
            start_requested(old, request.batch_id, request.attempt)

    deliver(start_requested(old, request.batch_id, request.attempt))
    relay(old, until_empty=True)
    without_unknown(old)
    assert_each_exactly_once(old.engine, old.client)


def test_what_a_delivery_changes_meanwhile_is_copied_again(old: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is redelivered behind its copy, one that is new, and rows that a person deletes by hand."""
    (_, second) = all_batches(old)
    make_pass, done = Copying.make_pass, iter([1])

    def interrupted(self: Copying, **options: object) -> bool:
        is_whole = make_pass(self, **options)  # type: ignore[arg-type]
        if next(done, None):
            assert [each.outcome for each in replay(old, [second], reload=True)] == ["redelivered"]
            send(old, 3)
            old.client.run(
                "DELETE FROM {table:Identifier} WHERE position <= 2 AND batch_id = {id:UUID}", {"id": str(UNKNOWN)}
            )
        return is_whole

    monkeypatch.setattr(Copying, "make_pass", interrupted)
    moved = move_log(old)

    assert {row["generation"] for row in all_rows(old) if row["batch_id"] == second.batch_id} == {1}
    assert moved.before is not None
    assert all_rows(old) == all_rows(old, moved.before)
    assert len([row for row in all_rows(old) if row["batch_id"] == UNKNOWN]) == 3
    without_unknown(old)
    assert_each_exactly_once(old.engine, old.client)


def test_what_cannot_be_moved_is_refused_first(old: Stores) -> None:
    """A TTL, a parked batch with rows, another move at work; nothing was made, and what is said helps."""
    old.client.run("ALTER TABLE {table:Identifier} MODIFY TTL toDateTime(loaded_at) + toIntervalYear(9)")
    assert "has a TTL" in refusal(old)
    old.client.run("ALTER TABLE {table:Identifier} REMOVE TTL")
    publish(old.engine, 2)
    cut_batches(old.engine, old.settings, limit=1)
    (request,) = request_batches(old.engine, old.settings, limit=1)
    delivery = start_requested(
        replace(old, settings=old.settings.model_copy(update={"max_attempts": 1})), request.batch_id, 1
    )
    delivery.prepare()
    delivery.load()
    assert end_failed(delivery, ConfigurationError("told to")) == BatchStatus.PARKED
    assert "is parked and has rows in the log" in refusal(old)
    with ledger_transaction(old.engine) as connection:
        resume_parked(connection)
    relay(old, until_empty=True)
    with ledger_transaction(old.engine) as connection:
        assert take_move(connection)
        assert "Another 'outbox log move' is at work" in refusal(old)
    assert shapes_from(old.client, prefix_of_moving(old.client)) == {}
    assert not move_log(old).was_moved


def refusal(stores: Stores) -> str:
    """Return why a move is refused."""
    with pytest.raises(OutboxError) as error:
        move_log(stores)
    return str(error.value)


def test_an_unfinished_move_is_abandoned(old: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table is dropped and the log is what it was; one that was altered meanwhile asks for that."""
    before = all_rows(old)
    monkeypatch.setattr(moves._Move, "_finish", lambda self: moves._Blocked("told to"))
    monkeypatch.setattr(moves, "_pause_of", lambda tries: 0)
    assert "told to" in refusal(old)
    old.client.run("ALTER TABLE {table:Identifier} ADD COLUMN mine String")
    assert "was altered since" in refusal(old)

    dropped = abandon_move(old)

    assert len(dropped) == 1
    assert shapes_from(old.client, prefix_of_moving(old.client)) == {}
    old.client.run("ALTER TABLE {table:Identifier} DROP COLUMN mine")
    assert all_rows(old) == before
    monkeypatch.undo()
    assert_is_moved_now(old, before)


def assert_is_moved_now(stores: Stores, before: list[Row]) -> None:
    """Move the log and check it."""
    move_log(stores)
    assert_moved(stores, before)
    assert len(shapes_from(stores.client, prefix_of_before(stores.client))) == 1
    assert len(delivered_ids(stores.client)) == 50
