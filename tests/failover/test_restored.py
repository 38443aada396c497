"""A ledger that was restored from a backup or copied delivers nothing twice and loses nothing that it has."""

import shutil

import pytest

from outbox_pipeline.relay.loop import relay
from tests.fixtures.events import assert_each_exactly_once, committed_ids, delivered_ids, publish
from tests.fixtures.rehearsal import Rehearsal, assert_goes_on, go_on, prepare

pytestmark = pytest.mark.failover


def test_a_dump_restored_elsewhere(rehearsal: Rehearsal) -> None:
    """What the lost server delivered after the dump is delivered once; what it published after it is told."""
    there = rehearsal.start_outbox()
    prepare(there)
    there.type("pg_dump --format=custom --file=shop.dump shop")
    lost = go_on(there)
    there.node.kill()
    here = rehearsal.at(rehearsal.nodes.empty())
    shutil.copy(there.node.data.with_name("shop.dump"), here.node.data.parent)

    here.type("createuser --no-login outbox_producer")
    here.type("createuser --no-login outbox_pipeline")
    here.type("createdb shop")
    here.type("pg_restore --exit-on-error --dbname=shop shop.dump")
    before = sorted(delivered_ids(here.stores.client))
    here.type("outbox relay --until-empty", status=1)
    assert sorted(delivered_ids(here.stores.client)) == before
    here.type("outbox adopt --yes")
    here.type("outbox relay --until-empty")
    here.type("outbox reconcile", status=1)

    assert_goes_on(here, lost=lost)
    rehearsal.assert_told("A dump restored elsewhere")


def test_a_dump_restored_in_place(rehearsal: Rehearsal) -> None:
    """Cluster, database and timeline are what they were, and ClickHouse tells that the ledger was set back."""
    here = rehearsal.start_outbox()
    prepare(here)
    here.type("pg_dump --format=custom --file=shop.dump shop")
    lost = go_on(here)
    here.stores.engine.dispose()

    here.type("pg_restore --clean --if-exists --exit-on-error --dbname=shop shop.dump")
    before = sorted(delivered_ids(here.stores.client))
    here.type("outbox relay --until-empty", status=1)
    assert sorted(delivered_ids(here.stores.client)) == before
    here.type("outbox adopt --yes")
    here.type("outbox relay --until-empty")
    here.type("outbox reconcile", status=1)

    assert_goes_on(here, lost=lost)
    rehearsal.assert_told("A dump restored in place")


def test_a_snapshot_mounted_again(rehearsal: Rehearsal) -> None:
    """The files of a running server, as they were at one moment, put back after it went on."""
    here = rehearsal.start_outbox()
    prepare(here)
    snapshot = rehearsal.nodes.snapshot_of(here.node)
    lost = go_on(here)
    here.stores.engine.dispose()
    here.node.kill()
    rehearsal.nodes.put_back(snapshot, here.node)
    here.node.start()

    before = sorted(delivered_ids(here.stores.client))
    here.type("outbox relay --until-empty", status=1)
    assert sorted(delivered_ids(here.stores.client)) == before
    here.type("outbox adopt --yes")
    here.type("outbox relay --until-empty")

    assert_goes_on(here, lost=lost)
    rehearsal.assert_told("A storage snapshot mounted again")


def test_a_clone_beside_the_living_original(rehearsal: Rehearsal) -> None:
    """The one that delivers second is stopped before its first byte; the one that is adopted goes on alone."""
    original = rehearsal.start_outbox()
    prepare(original)
    clone = rehearsal.at(rehearsal.nodes.clone_of(rehearsal.nodes.snapshot_of(original.node)))

    clone.type("outbox relay --until-empty")
    lost = set(publish(clone.stores.engine, 3))
    clone.type("outbox relay --until-empty")
    original.type("outbox relay --until-empty", status=1)
    original.type("outbox adopt --yes")
    original.type("outbox relay --until-empty")
    publish(clone.stores.engine, 2)
    clone.type("outbox relay --until-empty", status=1)

    assert_goes_on(original, lost=lost)
    rehearsal.assert_told("A clone beside the living original")


def test_a_copy_for_tests(rehearsal: Rehearsal) -> None:
    """Pointed at the original's table it sends nothing; with a table of its own it works, and the original goes on."""
    original = rehearsal.start_outbox()
    prepare(original)
    original.stores.engine.dispose()
    original.type("createdb --template=shop staging")
    copy = rehearsal.at(original.node, database="staging")
    copy.type("outbox relay --until-empty", status=1)

    copy = rehearsal.at(original.node, database="staging", clickhouse_url=rehearsal.other_clickhouse())
    copy.type("outbox init --recreate-log")
    copy.type("outbox adopt --yes")
    copy.type("outbox relay --until-empty")
    original.type("outbox relay --until-empty")

    assert len(delivered_ids(copy.stores.client)) == 200
    assert_goes_on(original)
    copy.type("outbox reconcile --repair")
    assert_goes_on(copy)
    rehearsal.assert_told("A copy for tests or staging")


def test_the_original_goes_on_beside_a_clone_that_comes_second(rehearsal: Rehearsal) -> None:
    """A clone that PostgreSQL takes for the original, and that is started by mistake, does no harm to it."""
    original = rehearsal.start_outbox()
    prepare(original)
    clone = rehearsal.at(rehearsal.nodes.clone_of(rehearsal.nodes.snapshot_of(original.node)))
    relay(original.stores, until_empty=True)
    publish(clone.stores.engine, 2)

    clone.type("outbox relay --until-empty", status=1)

    assert_each_exactly_once(original.stores.engine, original.stores.client, committed_ids(original.stores.engine))
    assert_goes_on(original)
