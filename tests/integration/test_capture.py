"""A captured table publishes what happens to it, whoever writes, in the same transaction; nobody gains rights by it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once

ORDERS = "CREATE TABLE orders (id bigint PRIMARY KEY, total numeric(12, 2), note text)"


def run(engine: Engine, *statements: str) -> None:
    """Run statements in one transaction."""
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def published(engine: Engine) -> list[tuple[str, Any]]:
    """Return type and context of every event in the order of positions."""
    with engine.begin() as connection:
        rows = connection.execute(text("SELECT event_type, event_context::text FROM outbox.event ORDER BY position"))
        return [(row[0], json.loads(row[1])) for row in rows]


def refusal(engine: Engine, *statements: str) -> str:
    """Return what PostgreSQL says when it refuses the last of these statements."""
    with engine.begin() as connection:
        for statement in statements[:-1]:
            connection.exec_driver_sql(statement)
        with pytest.raises(DBAPIError) as refused, connection.begin_nested():
            connection.exec_driver_sql(statements[-1])
    return str(refused.value.orig)


@pytest.fixture
def orders(outbox_engine: Engine) -> Engine:
    """A database with a captured table `orders`."""
    run(outbox_engine, ORDERS, "SELECT outbox.capture('orders')")
    return outbox_engine


def test_insert_update_and_delete_are_published(orders: Engine) -> None:
    """Each changed row is one event with the row after and before, in the order of the statements."""
    run(orders, "INSERT INTO orders VALUES (1, 12.50, 'a'), (2, 3, NULL)")
    run(orders, "UPDATE orders SET total = total + 1 WHERE id = 1", "DELETE FROM orders WHERE id = 2")

    first, second = {"id": 1, "total": 12.5, "note": "a"}, {"id": 2, "total": 3, "note": None}
    assert published(orders) == [
        ("orders_inserted", {"new": first}),
        ("orders_inserted", {"new": second}),
        ("orders_updated", {"new": first | {"total": 13.5}, "old": first}),
        ("orders_deleted", {"old": second}),
    ]


def test_capture_returns_the_event_types(outbox_engine: Engine) -> None:
    """Who captures a table is told what to expect, and may choose the name."""
    with outbox_engine.begin() as connection:
        connection.exec_driver_sql(ORDERS)
        types = connection.scalar(text("SELECT outbox.capture('orders', 'shop.order')"))

    assert types == ["shop.order_inserted", "shop.order_updated", "shop.order_deleted", "shop.order_truncated"]


def test_a_rollback_publishes_nothing(orders: Engine) -> None:
    """Rows and events share one transaction, savepoints included."""
    with orders.connect() as connection:
        connection.exec_driver_sql("INSERT INTO orders VALUES (1)")
        connection.rollback()
        connection.exec_driver_sql("INSERT INTO orders VALUES (2)")
        savepoint = connection.begin_nested()
        connection.exec_driver_sql("INSERT INTO orders VALUES (3)")
        savepoint.rollback()
        connection.exec_driver_sql("INSERT INTO orders VALUES (4)")
        connection.commit()

    assert [context["new"]["id"] for _, context in published(orders)] == [2, 4]


def test_a_changed_primary_key_keeps_rows_together(orders: Engine) -> None:
    """Before and after belong to the same row also where every key moves onto another row's old one."""
    run(orders, "INSERT INTO orders SELECT n, n, 'row ' || n FROM generate_series(1, 5000) AS n")
    run(orders, "ALTER TABLE orders DROP CONSTRAINT orders_pkey", "UPDATE orders SET id = 5001 - id, total = total + 1")

    updates = [context for event_type, context in published(orders) if event_type == "orders_updated"]

    assert len(updates) == 5000
    assert all(change["new"]["note"] == change["old"]["note"] for change in updates)
    assert all(change["new"]["id"] == 5001 - change["old"]["id"] for change in updates)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO orders VALUES (2, 7, 'n'), (3, 3, 'n') ON CONFLICT (id) DO UPDATE SET total = excluded.total",
        "MERGE INTO orders USING (VALUES (2, 7), (3, 3)) AS given (id, total) ON orders.id = given.id"
        " WHEN MATCHED THEN UPDATE SET total = given.total WHEN NOT MATCHED THEN INSERT VALUES (given.id, given.total)",
    ],
)
def test_upsert_and_merge_publish_what_they_did(orders: Engine, statement: str) -> None:
    """One statement that inserts and updates publishes both, each row with its own past."""
    run(orders, "INSERT INTO orders VALUES (1, 1), (2, 2)", statement)

    changes = published(orders)[2:]

    assert sorted(event_type for event_type, _ in changes) == ["orders_inserted", "orders_updated"]
    assert {context["new"]["id"] for _, context in changes} == {2, 3}
    assert [context["old"]["total"] for _, context in changes if "old" in context] == [2]


def test_an_update_that_changes_nothing_captured_is_silent(orders: Engine) -> None:
    """Columns that are left out neither appear nor cause events."""
    run(
        orders,
        "SELECT outbox.capture('orders', except_columns => '{note}')",
        "INSERT INTO orders VALUES (1, 1, 'secret')",
        "UPDATE orders SET note = 'other'",
        "UPDATE orders SET total = total",
        "UPDATE orders SET total = 2, note = 'third'",
    )

    assert published(orders) == [
        ("orders_inserted", {"new": {"id": 1, "total": 1}}),
        ("orders_updated", {"new": {"id": 1, "total": 2}, "old": {"id": 1, "total": 1}}),
    ]


def test_only_the_listed_columns_are_published(orders: Engine) -> None:
    """A list of columns is all an event shows; environment and version are those given."""
    run(
        orders,
        "SELECT outbox.capture('orders', 'o', 'production', columns => '{id}', metadata_version => 3)",
        "INSERT INTO orders VALUES (1, 1, 'secret')",
    )

    with orders.begin() as connection:
        row = connection.execute(text("SELECT environment, metadata_version FROM outbox.event")).one()

    assert published(orders) == [("o_inserted", {"new": {"id": 1}})]
    assert tuple(row) == ("production", 3)


@pytest.mark.parametrize("option", ["columns => '{id}'", "except_columns => '{id}'"])
def test_a_listed_column_that_is_renamed_stops_the_write(orders: Engine, option: str) -> None:
    """What was to be left out never appears under another name: writes fail until capture is called again."""
    run(orders, f"SELECT outbox.capture('orders', {option})", "ALTER TABLE orders RENAME id TO other")

    assert "Call outbox.capture again" in refusal(orders, "INSERT INTO orders VALUES (1)")
    run(orders, "SELECT outbox.capture('orders')", "INSERT INTO orders VALUES (1)")
    assert len(published(orders)) == 1


def test_new_columns_join_by_themselves(orders: Engine) -> None:
    """A table that grows needs no new call, and dropped columns leave."""
    run(orders, "ALTER TABLE orders ADD city text, DROP note", "INSERT INTO orders VALUES (1, 1, 'x')")

    assert published(orders) == [("orders_inserted", {"new": {"id": 1, "total": 1, "city": "x"}})]


def test_truncate_is_one_event(orders: Engine) -> None:
    """TRUNCATE shows no rows, so it says only that it happened."""
    run(orders, "INSERT INTO orders VALUES (1)", "TRUNCATE orders")

    assert published(orders)[1:] == [("orders_truncated", {})]


def test_many_rows_are_one_trigger_call(orders: Engine) -> None:
    """10,000 rows in one statement, INSERT or COPY, call the trigger once, and every row is an event."""
    with orders.begin() as connection:
        connection.exec_driver_sql("SET LOCAL track_functions = 'all'")
        connection.exec_driver_sql("INSERT INTO orders SELECT n FROM generate_series(1, 10000) AS n")
        after_insert = calls(connection)
        with connection.connection.cursor().copy("COPY orders (id) FROM STDIN") as copy:  # type: ignore[attr-defined]
            copy.write("\n".join(str(n) for n in range(10_001, 20_001)))
        after_copy = calls(connection)

    assert (after_insert, after_copy) == (1, 2)
    assert [context["new"]["id"] for _, context in published(orders)] == list(range(1, 20_001))


def calls(connection: Connection) -> int:
    """Return how often this transaction has called the capture trigger."""
    statement = "SELECT calls FROM pg_stat_xact_user_functions WHERE funcname = 'publish_captured'"
    return connection.scalar(text(statement)) or 0


def test_weird_names_are_only_names(outbox_engine: Engine) -> None:
    """Quotes, spaces, backslashes and names of the trigger's own making mean nothing in schema, table and columns."""
    table = '''"Od'd ""Schema".".; DROP"'''
    literal = table.replace("'", "''")
    run(
        outbox_engine,
        '''CREATE SCHEMA "Od'd ""Schema"''',
        f"CREATE TABLE {table}"
        """ ("new_row" int, "one" int, "a'b\\c%%s""d" int, "select" int, nth int)""",  # %% is the driver's %
        f"SELECT outbox.capture('{literal}')",
        f"INSERT INTO {table} VALUES (1, 2, 3, 4, 5)",
        f"UPDATE {table} SET nth = 6",
    )

    row = {"new_row": 1, "one": 2, "a'b\\c%s\"d": 3, "select": 4, "nth": 5}
    assert published(outbox_engine) == [
        (".; DROP_inserted", {"new": row}),
        (".; DROP_updated", {"new": row | {"nth": 6}, "old": row}),
    ]


def test_types_are_written_the_same_whatever_the_session_is_set_to(outbox_engine: Engine) -> None:
    """Times are in UTC, numbers exact, JSON as it was stored, and types of the application's own as their text."""
    run(
        outbox_engine,
        "CREATE TYPE mood AS ENUM ('', 'happy')",
        "CREATE TYPE pair AS (x int, y text)",
        "CREATE DOMAIN cents AS bigint",
        "CREATE TABLE t (a timestamptz, b numeric, c bytea, d interval, e tstzrange, f json, g jsonb, h mood, i pair,"
        " j cents, k mood[], l int[], m bool, n float8, o mood, p bigint GENERATED ALWAYS AS (j * 2) STORED)",
        "SELECT outbox.capture('t')",
        "SET LOCAL timezone = 'Asia/Tokyo'",
        "SET LOCAL datestyle = 'German'",
        "SET LOCAL extra_float_digits = -10",
        "INSERT INTO t VALUES ('2026-01-01 00:00:00+00', 1.10, '\\x00ff', '1 day 2 hours', '[2026-01-01Z,)',"
        """ '{"a":  1, "a": 2}', '[1.10]', '', (1, NULL), 9007199254740993, '{happy}', '{1,NULL}', true, 0.1, NULL)""",
    )

    with outbox_engine.begin() as connection:
        context = connection.scalar(text("SELECT event_context::text FROM outbox.event"))

    assert context == (
        '{"new" : {"a":"2026-01-01T00:00:00+00:00","b":1.10,"c":"\\\\x00ff","d":"P1DT2H",'
        '"e":"[\\"2026-01-01 00:00:00+00\\",)","f":{"a":  1, "a": 2},"g":[1.10],"h":"","i":"(1,)",'
        '"j":9007199254740993,"k":"{happy}","l":[1,null],"m":true,"n":0.1,"o":null,"p":18014398509481986}}'
    )


def test_capturing_again_replaces_and_releasing_ends(orders: Engine) -> None:
    """Two calls publish once; after the release nothing is published, and releasing again says so."""
    run(orders, "SELECT outbox.capture('orders', 'again')", "INSERT INTO orders VALUES (1)")
    with orders.begin() as connection:
        released = [connection.scalar(text("SELECT outbox.release_capture('orders')")) for _ in range(2)]
    run(orders, "UPDATE orders SET total = 1", "TRUNCATE orders")

    assert released == [True, False]
    assert [event_type for event_type, _ in published(orders)] == ["again_inserted"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("'outbox.event'", "a table of the outbox"),
        ("'outbox.batch'", "a table of the outbox"),
        ("'pg_class'", "a table of the outbox or of PostgreSQL"),
        ("'parted'", "the triggers of its parent"),
        ("'part'", "the triggers of its parent"),
        ("'parent'", "the triggers of its parent"),
        ("'child'", "the triggers of its parent"),
        ("'seen'", "only a permanent table"),
        ("'passing'", "only a permanent table"),
        ("NULL", "there is no such table"),
        ("'orders', ' '", "event_type must have"),
        ("'orders', repeat('x', 491)", "event_type must have 1 to 490 bytes"),
        ("'orders', repeat('ä', 246)", "event_type must have 1 to 490 bytes"),
        ("'orders', environment => ''", "environment must have 1 to 200 bytes"),
        ("'orders', environment => repeat('ä', 101)", "environment must have 1 to 200 bytes"),
        ("'orders', metadata_version => 0", "metadata_version must be"),
        ("'orders', columns => '{id,nope}'", "it has no column nope (of generated"),
        ("'orders', columns => '{ctid}'", "it has no column ctid (of generated"),
        ("'orders', columns => '{NULL}'", "it has no column NULL (of generated"),
        ("'orders', except_columns => '{nope,Total,id}'", 'it has no column "Total", nope (of generated'),
        ("'orders', except_columns => '{id,total,note}'", "no column is left"),
        ("'orders', columns => '{id}', except_columns => '{note}'", "name either"),
        ("'orders', columns => NULL", "leave columns"),
    ],
)
def test_what_cannot_be_captured_is_refused(kept_engine: Engine, call: str, said: str) -> None:
    """A table whose changes would pass by unseen, and arguments that make no sense, are refused in one sentence."""
    prepare = [
        ORDERS,
        "CREATE TABLE parted (id int) PARTITION BY LIST (id)",
        "CREATE TABLE part PARTITION OF parted FOR VALUES IN (1)",
        "CREATE TABLE parent (id int)",
        "CREATE TABLE child () INHERITS (parent)",
        "CREATE VIEW seen AS SELECT 1 AS id",
        "CREATE TEMPORARY TABLE passing (id int)",
    ]

    with kept_engine.connect() as connection:
        for statement in prepare:
            connection.exec_driver_sql(statement)
        with pytest.raises(DBAPIError) as refused:
            connection.exec_driver_sql(f"SELECT outbox.capture({call})")

    assert said in str(refused.value.orig)


def test_the_longest_names_can_be_captured(outbox_engine: Engine) -> None:
    """What capture lets through no write is refused for, with the longest ending as well."""
    run(outbox_engine, ORDERS, "SELECT outbox.capture('orders', repeat('ä', 245), repeat('e', 200))")
    run(outbox_engine, "INSERT INTO orders VALUES (1)", "TRUNCATE orders")

    assert [event_type for event_type, _ in published(outbox_engine)] == [
        "ä" * 245 + "_inserted",
        "ä" * 245 + "_truncated",
    ]


def test_who_writes_needs_no_right_on_the_outbox(outbox_engine: Engine, login: Callable[..., Engine]) -> None:
    """The table's owner captures it as a producer; an application's user who knows nothing of it publishes."""
    owner, writer = login("outbox_producer"), login()
    name = owner.url.username
    run(outbox_engine, f"CREATE SCHEMA shop AUTHORIZATION {name}")
    run(owner, ORDERS.replace("orders", "shop.orders"), "SELECT outbox.capture('shop.orders')")
    run(owner, f"GRANT USAGE ON SCHEMA shop TO {writer.url.username}")
    run(owner, f"GRANT SELECT, INSERT, UPDATE, DELETE ON shop.orders TO {writer.url.username}")

    run(writer, "INSERT INTO shop.orders VALUES (1)", "UPDATE shop.orders SET total = 1", "DELETE FROM shop.orders")

    assert [event_type for event_type, _ in published(outbox_engine)] == [
        "orders_inserted",
        "orders_updated",
        "orders_deleted",
    ]
    assert "permission denied" in refusal(writer, "SELECT outbox.capture('shop.orders')")


def test_only_the_owner_captures(outbox_engine: Engine, login: Callable[..., Engine]) -> None:
    """A producer needs its own table, TRIGGER on another's is not enough; an owner must be a producer."""
    run(outbox_engine, ORDERS)
    producer, owner = login("outbox_producer"), login()
    run(outbox_engine, f"GRANT ALL ON orders TO {producer.url.username}")
    run(outbox_engine, "CREATE TABLE mine (id int)", f"ALTER TABLE mine OWNER TO {owner.url.username}")

    assert "only its owner" in refusal(producer, "SELECT outbox.capture('orders')")
    assert "permission denied" in refusal(owner, "SELECT outbox.capture('mine')")
    assert "permission denied" in refusal(
        owner, "CREATE TRIGGER t AFTER INSERT ON mine EXECUTE FUNCTION outbox.publish_captured('t', 't', '1')"
    )


@pytest.fixture
def attacker(outbox_engine: Engine, login: Callable[..., Engine]) -> Engine:
    """A producer with a schema of its own and a function that tells with whose rights it runs."""
    engine = login("outbox_producer")
    run(outbox_engine, f"CREATE SCHEMA trap AUTHORIZATION {engine.url.username}")
    run(
        engine,
        "CREATE TABLE trap.caught (who text)",
        "GRANT ALL ON trap.caught TO PUBLIC",
        "GRANT ALL ON SCHEMA trap TO PUBLIC",
        "CREATE TYPE trap.mood AS ENUM ('happy')",
        "CREATE TABLE trap.bait (mood trap.mood, moods trap.mood[])",
        "CREATE FUNCTION trap.spring(trap.mood) RETURNS json LANGUAGE plpgsql AS"
        """ $$ BEGIN INSERT INTO trap.caught VALUES (current_user); RETURN '"gotcha"'; END $$""",
        "CREATE CAST (trap.mood AS json) WITH FUNCTION trap.spring(trap.mood)",
    )
    return engine


def test_a_cast_of_the_tables_owner_does_not_run_with_the_triggers_rights(
    outbox_engine: Engine, attacker: Engine
) -> None:
    """JSON is made without the casts that anybody can define for types of their own."""
    run(attacker, "SELECT outbox.capture('trap.bait')", "INSERT INTO trap.bait VALUES ('happy', '{happy}')")

    assert published(outbox_engine) == [("bait_inserted", {"new": {"mood": "happy", "moods": "{happy}"}})]
    with outbox_engine.begin() as connection:
        assert list(connection.scalars(text("SELECT who FROM trap.caught"))) == []


def test_a_trigger_of_ones_own_making_is_refused(outbox_engine: Engine, attacker: Engine) -> None:
    """The trigger function reads transition tables only, never a temporary view that bears their name."""
    statements = [
        "CREATE TEMPORARY VIEW new_row AS SELECT mood, moods, trap.spring('happy') FROM trap.bait",
        "CREATE TRIGGER mine AFTER INSERT ON trap.bait FOR EACH STATEMENT"
        " EXECUTE FUNCTION outbox.publish_captured('t', 't', '1', '{}', '{}')",
        "INSERT INTO trap.bait VALUES ('happy')",
    ]

    assert "was not made by outbox.capture" in refusal(attacker, *statements)
    with outbox_engine.begin() as connection:
        assert list(connection.scalars(text("SELECT who FROM trap.caught"))) == []


def test_captured_changes_are_delivered(stores: Stores) -> None:
    """Every event a captured table publishes passes validation and arrives once."""
    run(
        stores.engine,
        ORDERS,
        "SELECT outbox.capture('orders')",
        "INSERT INTO orders SELECT n, n FROM generate_series(1, 100) AS n",
        "UPDATE orders SET total = 0 WHERE id <= 50",
        "DELETE FROM orders WHERE id > 90",
        "TRUNCATE orders",
    )

    result = relay(stores, until_empty=True)

    assert (result.delivered_count, result.quarantined_count) == (161, 0)
    assert_each_exactly_once(stores.engine, stores.client)
