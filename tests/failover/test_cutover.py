"""A move to another server by logical replication, which copies rows and no sequences."""

import pytest
from sqlalchemy import text

from outbox_pipeline.processes import wait_until
from tests.fixtures.events import publish
from tests.fixtures.rehearsal import Rehearsal, Terminal, assert_goes_on

pytestmark = pytest.mark.failover

_SECONDS = 60.0


def prune_all(life: Terminal) -> None:
    """Let everything that was delivered be so old that its events leave PostgreSQL."""
    with life.stores.engine.begin() as connection:
        for column in ("processed_at", "proved_at", "cut_at", "oldest_recorded_at"):
            connection.execute(text(f"UPDATE outbox.batch SET {column} = {column} - interval '20 days'"))
    life.type("outbox prune")


def wait_for_copy(source: Terminal, target: Terminal) -> None:
    """Wait until the subscription has all that was written at the source."""
    copied = "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel"
    assert wait_until(lambda: bool(target.node.sql(copied, database="shop")), seconds=_SECONDS)
    written = source.node.sql("SELECT pg_current_wal_lsn()::text")
    confirmed = f"SELECT bool_and(confirmed_flush_lsn >= '{written}') FROM pg_replication_slots"
    assert wait_until(lambda: bool(source.node.sql(confirmed)), seconds=_SECONDS)


def test_a_cutover_by_logical_replication(rehearsal: Rehearsal) -> None:
    """Each event of both servers arrives once, also those published here at positions of old batches."""
    source = rehearsal.start_outbox()
    pruned = set(publish(source.stores.engine, 100))
    source.type("outbox relay --until-empty")
    prune_all(source)
    publish(source.stores.engine, 50)
    source.type("outbox relay --until-empty")
    publish(source.stores.engine, 10)
    target = rehearsal.at(rehearsal.nodes.empty())

    target.type("createuser --no-login outbox_producer")
    target.type("createuser --no-login outbox_pipeline")
    target.type("createdb shop")
    source.type("pg_dump --schema-only --file=schema.sql shop")
    target.node.must(f"psql --set=ON_ERROR_STOP=1 --file={source.node.data.with_name('schema.sql')} shop")
    source.type("psql --command='CREATE PUBLICATION shop FOR TABLES IN SCHEMA outbox' shop")
    connection = f"host=127.0.0.1 port={source.node.cluster.port} user=postgres password=outbox dbname=shop"
    target.node.sql(f"CREATE SUBSCRIPTION shop CONNECTION '{connection}' PUBLICATION shop", database="shop")
    wait_for_copy(source, target)
    source.type("outbox relay --until-empty")
    publish(source.stores.engine, 7)
    target.type("outbox relay --until-empty", status=1)
    target.type("outbox adopt --yes", status=1)
    wait_for_copy(source, target)
    target.type("psql --command='DROP SUBSCRIPTION shop' shop")
    publish(target.stores.engine, 20)
    target.type("outbox relay --until-empty", status=1)
    target.type("outbox adopt --yes")
    target.type("outbox relay --until-empty")

    assert_goes_on(target, lost=pruned)
    rehearsal.assert_told("A cutover by logical replication")
