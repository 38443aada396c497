"""Several outboxes share a log, each as a source of it: they see, count, prove and delete their own rows only.

Positions and batch ids of both are the same on purpose, so nothing but the source tells their rows apart.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from outbox_pipeline.batches import Batch
from outbox_pipeline.clickhouse.batch_contents import fenced_attempts, shown_batches, shown_rows
from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.completeness import drop_days, read_delivered
from outbox_pipeline.clickhouse.fences import FIRST, drop_fences, old_fences
from outbox_pipeline.clickhouse.load import raise_fence
from outbox_pipeline.clickhouse.migrations.files import migrations
from outbox_pipeline.clickhouse.owner import add_claims, new_claim, read_claims
from outbox_pipeline.clickhouse.proof import proof_in_clickhouse
from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.monitoring.trace import trace_event
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.repair import repair
from outbox_pipeline.operations.replay import replay
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.relay.attempts import request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.owner import claim_table
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.relay.witness import ask_seen
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import change
from tests.fixtures.events import assert_each_exactly_once, delivered_ids, publish, quarantined_ids
from tests.fixtures.instances import all_batches, everything
from tests.fixtures.old_log import statements_of_before, turn_into_log_of_before
from tests.fixtures.owners import ledger_id_of
from tests.fixtures.snapshots import delivered_batches

_SYNC = {"lightweight_deletes_sync": 2, "mutations_sync": 2}
_EVER = datetime(2000, 1, 1, tzinfo=UTC)

#: Granules of the test of plans: small ones, so that few rows make many.
_GRANULE = 64


@pytest.fixture
def sent(stores: Stores, shop: Stores, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every statement that both send to ClickHouse from now on."""
    found: set[str] = set()

    def spy(send: Callable[..., Any]) -> Callable[..., Any]:
        def record(statement: str, *arguments: Any, **options: Any) -> Any:
            found.add(statement)
            return send(statement, *arguments, **options)

        return record

    for each in (stores, shop):
        for name in ("query", "command", "query_row_block_stream"):
            monkeypatch.setattr(each.client.driver, name, spy(getattr(each.client.driver, name)))
    return found


@pytest.fixture
def both(stores: Stores, shop: Stores, sent: set[str]) -> Iterator[tuple[Stores, Stores]]:
    """The only source and the shop's, each with one batch of the same id over the same positions, and other events.

    Whatever is then done, each statement says whose rows it means.
    """
    for each in (stores, shop):
        publish(each.engine, 30)
        cut_batches(each.engine, each.settings, limit=1)
    (batch,) = all_batches(stores)
    with shop.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET batch_id = :batch_id"), {"batch_id": batch.batch_id})
    yield stores, shop
    assert [statement for statement in sent if is_of_all_sources(statement)] == []


def is_of_all_sources(statement: str) -> bool:
    """Tell whether a statement names a table that has sources more often than a source."""
    tables = re.findall(r"\b(?:FROM|INTO) \{(?:table|fence|completeness):Identifier\}", statement)
    return len(tables) > statement.count("{source:String}")


def log_of(each: Stores) -> list[dict[str, Any]]:
    """Return every column of the source's rows."""
    return each.client.rows("SELECT * FROM {table:Identifier} WHERE source = {source:String} ORDER BY position")


def test_two_outboxes_share_a_table(both: tuple[Stores, Stores]) -> None:
    """Both deliver all their events once, prove them, find nothing of the other's, and tell their own days."""
    for each, count in zip(both, (5, 9), strict=True):
        publish(each.engine, count)
        relay(each, until_empty=True)
        record_completeness(each)
        prune(each)

    for each, count in zip(both, (35, 39), strict=True):
        assert_each_exactly_once(each.engine, each.client)
        found = reconcile(each, by_type=True)
        assert (found.is_clean, found.unknown, found.unknown_batches) == (True, (), 0)
        assert {row["generation"] for row in log_of(each)} == {0}
        assert rows_shown(each) == (count, count)
        assert [day.event_count for day in read_delivered(each.client)] == [count]
        assert {done.outcome for done in replay(each, all_batches(each))} == {"proven"}
    told = both[0].client.rows("SELECT source, event_count FROM {delivered:Identifier} ORDER BY source")
    assert told == [{"source": "", "event_count": 35}, {"source": "shop", "event_count": 39}]


def rows_shown(each: Stores) -> tuple[int, int]:
    """Return how many rows ClickHouse shows of all batches, counted by it and as they come."""
    batches = [shown for block in shown_batches(each.client) for shown in block]
    rows = sum(len(rows) for shown in batches for rows in shown_rows(each.client, shown.batch_id, shown.bounds))
    return sum(shown.row_count for shown in batches), rows


def test_rows_of_unknown_batches_are_told_to_their_source(both: tuple[Stores, Stores]) -> None:
    """The same unknown batch in both is counted for each by itself, with its doubles, and so is its removal."""
    unknown = UUID("00000000-0000-7000-8000-000000000000")
    for each, count in zip(both, (2, 3), strict=True):
        relay(each, until_empty=True)
        each.client.run(
            "INSERT INTO {table:Identifier} SELECT * REPLACE ({unknown:UUID} AS batch_id) FROM"
            " (SELECT * FROM {table:Identifier} WHERE source = {source:String} AND position <= {count:UInt32})"
            " WHERE source = {source:String}",
            {"unknown": str(unknown), "count": count},
        )

    found = [reconcile(each).unknown for each in both]

    assert [(rows.row_count, rows.copies) for (rows,) in found] == [(2, 2), (3, 3)]
    for (rows,), each in zip(found, both, strict=True):
        change(each.client, rows.sentence.rpartition(": ")[2].replace("event_log", "{table:Identifier}"), unknown)
        assert reconcile(each).is_clean


@pytest.mark.parametrize("one", [0, 1], ids=["the only source", "the shop"])
def test_a_repair_of_one_leaves_the_other_alone(both: tuple[Stores, Stores], one: int) -> None:
    """Rows of one that are lost are found by it alone, and sent again with no row of the other touched."""
    for each in both:
        relay(each, until_empty=True)
    broken, sound = both[one], both[1 - one]
    before = log_of(sound)
    broken.client.run(
        "DELETE FROM {table:Identifier} WHERE source = {source:String} AND position <= 10", settings=_SYNC
    )

    found = reconcile(broken)
    repair(broken, found)

    assert len(found.differences) == 1
    assert {row["generation"] for row in log_of(broken)} == {1}
    assert log_of(sound) == before
    for each in both:
        assert_each_exactly_once(each.engine, each.client)
        assert reconcile(each).is_clean


def test_a_fence_of_one_stops_no_other(both: tuple[Stores, Stores]) -> None:
    """Fences of the same batch id are raised, found and dropped for each source by itself."""
    stores, shop = both
    (batch,) = all_batches(stores)
    raise_fence(shop.client, batch.batch_id, 7)
    relay(stores, until_empty=True)
    raise_fence(stores.client, batch.batch_id, 3)

    later = {"now": datetime.now(UTC), "days": 0, "after": FIRST, "limit": 10}
    assert [attempts(each) for each in both] == [{batch.batch_id: 3}, {batch.batch_id: 7}]
    assert old_fences(shop.client, **later) == [batch.batch_id]  # type: ignore[arg-type]
    drop_fences(shop.client, [batch.batch_id])
    assert [attempts(each) for each in both] == [{batch.batch_id: 3}, {}]
    assert old_fences(shop.client, **later) == []  # type: ignore[arg-type]
    assert_each_exactly_once(stores.engine, stores.client)


def attempts(each: Stores) -> dict[UUID, int]:
    """Return the highest fence of each batch."""
    return {batch_id: attempt for block in fenced_attempts(each.client) for batch_id, attempt in block.items()}


def test_days_of_one_are_dropped_alone(both: tuple[Stores, Stores]) -> None:
    """What was told of a day for one source can go, and the other's stays."""
    for each in both:
        relay(each, until_empty=True)
        record_completeness(each)
    stores, shop = both

    drop_days(stores.client, [day.day for day in read_delivered(stores.client)], written_after=_EVER)

    assert read_delivered(stores.client) == []
    assert [day.event_count for day in read_delivered(shop.client)] == [30]


def test_an_event_of_another_source_is_not_traced(both: tuple[Stores, Stores]) -> None:
    """Its id is unknown here, although the table has a row of it."""
    stores, shop = both
    relay(shop, until_empty=True)

    found = trace_event(stores.engine, stores.settings, delivered_ids(shop.client)[0])

    assert (found.status, found.rows) == ("unknown", [])


def test_what_the_table_refuses_of_one_source_is_found(both: tuple[Stores, Stores]) -> None:
    """The search for refused events sends them as the rows that they would be."""
    both[0].client.run("ALTER TABLE {table:Identifier} ADD CONSTRAINT no_third CHECK source != 'shop' OR position != 3")

    for each in both:
        relay(each, until_empty=True)

    assert [len(quarantined_ids(each.engine)) for each in both] == [0, 1]
    for each in both:
        assert_each_exactly_once(each.engine, each.client)


@pytest.fixture
def old(stores: Stores, shop: Stores) -> tuple[Stores, Stores]:
    """A log of before, migrated, which the shop has claimed and filled; first the one that comes too late."""
    turn_into_log_of_before(stores.client)
    create_table(stores.client)
    publish(shop.engine, 3)
    relay(shop, until_empty=True)
    return stores, shop


def test_a_table_of_before_serves_one_source(old: tuple[Stores, Stores]) -> None:
    """Whatever would claim it for a second one is refused with what to do, before anything is cut or sent."""
    late, shop = old
    publish(late.engine, 2)
    before = everything(late), everything(shop)
    acts: list[Callable[[Stores], object]] = [relay, claim_table, record_completeness, _ask]

    reached: list[Point] = []
    end = listen(reached.append)
    said = [refusal(act, late) for act in acts]
    end()
    (owner,) = [check for check in examine(late.settings) if check.name == "clickhouse owner"]
    (table,) = [check for check in examine(late.settings) if check.name == "clickhouse table"]

    for sentence in (*said, owner.message):
        assert "it serves one outbox, and that is postgresql://" in sentence
        assert f"/{shop.engine.url.database}: " in sentence
        assert "OUTBOX_CLICKHOUSE_TABLE" in sentence
    assert reached == []
    assert (owner.ok, table.ok) == (False, True)
    assert "so it can serve one outbox only" in table.message
    assert (everything(late), everything(shop)) == before
    publish(shop.engine, 2)
    relay(shop, until_empty=True)
    assert_each_exactly_once(shop.engine, shop.client)


def _ask(each: Stores) -> object:
    return ask_seen(each.engine, each.settings)


def refusal(act: Callable[[Stores], object], each: Stores) -> str:
    """Return why an act was refused."""
    with pytest.raises(ConfigurationError) as error:
        act(each)
    return str(error.value)


def test_rows_of_before_have_a_source_without_a_claim(stores: Stores, shop: Stores) -> None:
    """A table that nobody has claimed yet is the only source's, whose rows are in it."""
    delivered_batches(stores, (3,))
    turn_into_log_of_before(stores.client)
    create_table(stores.client)

    assert "and that is the one whose rows are there" in refusal(claim_table, shop)
    assert read_claims(shop.client) == []
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def test_of_two_sources_at_once_in_a_table_of_before_one_stays(stores: Stores, shop: Stores) -> None:
    """A claim of another source that was written meanwhile is seen, and the own one taken back."""
    turn_into_log_of_before(stores.client)
    create_table(stores.client)

    def rival(point: Point) -> None:
        if point == Point.CLAIMED:
            add_claims(shop.client, [new_claim(shop.client, ledger_id_of(shop), "the shop")])

    end = listen(rival)
    try:
        assert "and that is the shop" in refusal(claim_table, stores)
    finally:
        end()

    assert read_claims(stores.client) == []
    assert [claim.label for claim in read_claims(shop.client)] == ["the shop"]


@pytest.mark.parametrize("with_owner", [False, True], ids=["of the first release", "with an owner"])
def test_a_log_of_before_is_delivered_into(stores: Stores, with_owner: bool) -> None:
    """With rows, an open batch and one that was sent and not marked it gets the column, keeps its keys and goes on."""
    delivered_batches(stores, (20,))
    record_completeness(stores)
    publish(stores.engine, 10)
    cut_batches(stores.engine, stores.settings, limit=1)
    (request,) = request_batches(stores.engine, stores.settings, limit=1)
    sent = start_requested(stores, request.batch_id, request.attempt)
    sent.load()
    sent.close()
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET lease_until = lease_until - interval '1 day'"))
    publish(stores.engine, 5)
    cut_batches(stores.engine, stores.settings, limit=1)
    turn_into_log_of_before(stores.client, with_owner=with_owner)
    if not with_owner:
        forget_numbers(stores)
    rows = stores.client.rows("SELECT * FROM {table:Identifier} ORDER BY position")
    assert "run 'outbox init'" in refusal(relay, stores)

    create_table(stores.client)
    migrated = stores.client.rows("SELECT * FROM {table:Identifier} ORDER BY position")
    relay(stores, until_empty=True)
    record_completeness(stores)

    assert [list(row)[-1] for row in migrated] == ["source"] * 30
    assert [{**row, "source": ""} for row in rows] == migrated
    assert keys(stores.client) == {
        "table": "event_type, event_date_time, event_id",
        "fence": "batch_id",
        "completeness": "day",
    }
    assert_each_exactly_once(stores.engine, stores.client)
    assert reconcile(stores).is_clean
    assert [day.event_count for day in read_delivered(stores.client)] == [35]
    assert stores.client.rows("SELECT source, event_count FROM {delivered:Identifier}") == [
        {"source": "", "event_count": 35}
    ]


def forget_numbers(stores: Stores) -> None:
    """Let the ledger be one of before its batches had numbers."""
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET cut_number = NULL"))
        connection.execute(text("UPDATE outbox.unclaimed SET last_cut_number = 0"))


def keys(client: EventLogClient) -> dict[str, str]:
    """Return the sorting key of each table that has sources."""
    roles = {client.names[role]: role for role in ("table", "fence", "completeness")}
    rows = client.rows(
        "SELECT name, sorting_key FROM system.tables"
        " WHERE database = currentDatabase() AND name IN {names:Array(String)}",
        {"names": list(roles)},
    )
    return {roles[row["name"]]: row["sorting_key"] for row in rows}


def test_a_new_log_is_sorted_by_source_first(stores: Stores) -> None:
    """Nothing else tells the granules of two sources apart, and a key cannot be changed later."""
    assert keys(stores.client) == {
        "table": "source, event_type, event_date_time, event_id",
        "fence": "source, batch_id",
        "completeness": "source, day",
    }


def test_a_table_with_the_name_of_the_view_stays(stores: Stores) -> None:
    """What somebody has put there instead of the view is not replaced; the sentence says to rename it."""
    turn_into_log_of_before(stores.client)
    stores.client.run("DROP VIEW {delivered:Identifier}")
    stores.client.run("CREATE TABLE {delivered:Identifier} (mine UInt8) ENGINE = MergeTree ORDER BY mine")
    stores.client.run("INSERT INTO {delivered:Identifier} VALUES (7)")

    create_table(stores.client)

    assert stores.client.rows("SELECT * FROM {delivered:Identifier}") == [{"mine": 7}]
    assert "rename it, then run 'outbox init'" in refusal(record_completeness, stores)


def test_a_proof_reads_the_granules_of_its_source(stores: Stores) -> None:
    """With two sources of distant positions it reads what it would read alone, and with the key of before far more."""
    publish(stores.engine)
    cut_batches(stores.engine, stores.settings, limit=1)
    (cut,) = all_batches(stores)
    batch = replace(cut, batch_id=UUID(int=10), first_position=10_000, last_position=10_999)
    new, before = made("sorted", new_key()), made("unsorted", old_key())
    read = {}
    for name, statement, sources in (("alone", new, 1), ("new key", new, 2), ("key of before", before, 2)):
        stores.client.run(statement)
        table = re.match(r"CREATE TABLE IF NOT EXISTS (\w+)", statement)[1]  # type: ignore[index]
        fill(stores.client, table, sources)
        read[name] = rows_of_a_proof(stores.client, table, batch)
        stores.client.run(f"DROP TABLE {table}")

    assert read["new key"] <= read["alone"] + 2 * _GRANULE
    assert read["key of before"] > 10 * read["new key"]


def made(name: str, statement: str) -> str:
    """Return a statement that makes a table of this name with small granules."""
    renamed = statement.replace("{table:Identifier}", name)
    return renamed.replace("SETTINGS ", f"SETTINGS index_granularity = {_GRANULE}, ")


def new_key() -> str:
    """Return what makes an event log."""
    return migrations()[0].statements[0].text


def old_key() -> str:
    """Return what made one of before, with the column."""
    column = "    source LowCardinality(String) DEFAULT '',\n    INDEX"
    return next(statements_of_before()).replace("    INDEX", column)


def fill(client: EventLogClient, table: str, sources: int) -> None:
    """Put 20,000 events of each source into one part, of the same types and times, their positions far apart."""
    client.run(
        f"INSERT INTO {table} (event_type, event_date_time, event_id, batch_id, position, source)"
        " SELECT concat('t', toString(n % 4)), toDateTime64('2026-01-01', 6, 'UTC') + n, generateUUIDv4(),"
        " toUUID('00000000-0000-0000-0000-00000000000a'), n + s * 1000000000, ['', 'shop'][s + 1]"
        " FROM (SELECT number % 20000 AS n, intDiv(number, 20000) AS s FROM numbers({rows:UInt32}))",
        {"rows": 20_000 * sources},
    )
    assert client.rows(f"SELECT count() AS n FROM {table}") == [{"n": 20_000 * sources}]


def rows_of_a_proof(client: EventLogClient, table: str, batch: Batch) -> int:
    """Return how many rows ClickHouse reads for the proof of a batch, as its own plan says."""
    there = client.of_source("")
    there.names = {**client.names, "table": table}
    asked: list[tuple[str, dict[str, Any]]] = []
    query = client.driver.query

    def record(statement: str, parameters: dict[str, Any]) -> Any:
        asked.append((statement, parameters))
        return query(statement, parameters=parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.driver, "query", record)
        found, _ = proof_in_clickhouse(there, batch, generation=0)
    assert found.row_count == 1_000
    ((statement, parameters),) = asked
    estimate = query(f"EXPLAIN ESTIMATE {statement}", parameters=parameters).named_results()
    return sum(part["rows"] for part in estimate)
