"""A ledger that was set back in a way that PostgreSQL cannot tell delivers nothing twice and loses nothing.

Its cluster, database and timeline are what they were, and pending in it are events that were delivered since.
ClickHouse is the witness of that; both sides are compared by event id.
"""

from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from outbox_pipeline.errors import WitnessError
from outbox_pipeline.operations.adopt import Adoption, adopt
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import refuse_wal_functions
from tests.fixtures.copies import copy_running, copy_stopped, instance_in, recover_to
from tests.fixtures.events import publish
from tests.fixtures.instances import assert_whole, back_up, restore_in_place

pytestmark = [pytest.mark.embedded_only, pytest.mark.usefixtures("unclaimed")]


def prepare(instance: Stores) -> None:
    """Deliver some events and leave others pending: what is copied then."""
    publish(instance.engine, 10)
    relay(instance, until_empty=True)
    publish(instance.engine, 5)


def go_on(instance: Stores) -> set[UUID]:
    """Deliver what is pending, and events that no copy has; return those."""
    relay(instance, until_empty=True)
    lost = set(publish(instance.engine, 2))
    relay(instance, until_empty=True)
    return lost


def assert_stopped_then_adopted(instance: Stores) -> Adoption:
    """Check that an instance sends nothing before it is adopted; adopt it and deliver the rest."""
    publish(instance.engine, 3)
    before = instance.client.rows("SELECT count() FROM {table:Identifier}")
    with pytest.raises(WitnessError, match="outbox adopt"):
        relay(instance, until_empty=True)
    assert instance.client.rows("SELECT count() FROM {table:Identifier}") == before
    result = adopt(instance)
    relay(instance, until_empty=True)
    return result


def test_a_dump_restored_in_place(stores: Stores, backup: Path) -> None:
    """`pg_restore --clean` over the database it was taken of; what it lost is not to be deleted without a thought."""
    prepare(stores)
    back_up(stores, backup)
    lost = go_on(stores)
    restore_in_place(stores, backup)

    result = assert_stopped_then_adopted(stores)

    assert (result.adopted_events, result.strange_rows, result.doubled_events) == (5, 2, 0)
    assert_whole(stores, lost=lost)
    (left,) = reconcile(stores).unknown
    assert left.row_count == 2
    assert "leave them, because they may be the only copy" in left.sentence
    assert "DELETE" not in left.sentence


def test_a_snapshot_mounted_again(stores: Stores, tmp_path: Path) -> None:
    """The files of a stopped server, put back after it went on."""
    home, snapshot = tmp_path / "home", tmp_path / "snapshot"
    with instance_in(home, stores) as instance:
        prepare(instance)
    copy_stopped(home, snapshot)
    with instance_in(home, stores) as instance:
        lost = go_on(instance)
    copy_stopped(snapshot, home)

    with instance_in(home, stores) as instance:
        result = assert_stopped_then_adopted(instance)

        assert (result.adopted_events, result.strange_rows, result.doubled_events) == (5, 2, 0)
        assert_whole(instance, lost=lost)


def test_a_clone_beside_the_living_original(stores: Stores, tmp_path: Path) -> None:
    """Both run and deliver, each in turn: none sends what the other sent, and the one that is adopted goes on alone."""
    home, clone = tmp_path / "home", tmp_path / "clone"
    with instance_in(home, stores) as instance:
        prepare(instance)
    copy_stopped(home, clone)

    with instance_in(home, stores) as original, instance_in(clone, stores) as other:
        lost = set(publish(other.engine, 2))
        relay(other, until_empty=True)
        result = assert_stopped_then_adopted(original)
        publish(other.engine, 1)
        with pytest.raises(WitnessError, match="Another instance of this ledger was adopted"):
            relay(other, until_empty=True)

        assert (result.adopted_events, result.strange_rows, result.doubled_events) == (5, 2, 0)
        publish(original.engine, 1)
        relay(original, until_empty=True)
        assert_whole(original, lost=lost)


def test_a_recovery_to_a_point_where_no_timeline_is_told(stores: Stores, tmp_path: Path) -> None:
    """Recovered to a restore point on a server that tells no timeline, as Aurora does: the witness alone decides."""
    home, recovered = tmp_path / "home", tmp_path / "recovered"
    with instance_in(home, stores) as instance:
        refuse_wal_functions(instance.engine)
        with instance.engine.begin() as connection:
            connection.execute(text("UPDATE outbox.unclaimed SET timeline = outbox.told_timeline()"))
        publish(instance.engine, 2)
        relay(instance, until_empty=True)
        copy_running(instance, recovered)
        prepare(instance)
        with instance.engine.begin() as connection:
            connection.execute(text("SELECT pg_create_restore_point('before it went on')"))
        lost = go_on(instance)
        recover_to("before it went on", instance, recovered)

    with instance_in(recovered, stores) as instance:
        result = assert_stopped_then_adopted(instance)

        assert (result.adopted_events, result.strange_rows, result.doubled_events) == (5, 2, 0)
        assert_whole(instance, lost=lost)
