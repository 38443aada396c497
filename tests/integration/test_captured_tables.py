"""Captured tables whose changes would pass by: what can be refused is, the doctor names the rest with what helps."""

import re
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from outbox_pipeline.monitoring.captures import check_captures
from outbox_pipeline.monitoring.check import Check

#: A statement in a sentence, who runs it left out: here it is the superuser, who may do what an owner may.
_REMEDY = re.compile(r"((?:ALTER|SELECT) [^;]*); as (?:its owner|a superuser)")

ORDERS = ("CREATE TABLE orders (id int, note text)", "SELECT outbox.capture('orders', except_columns => '{note}')")


def run(engine: Engine, *statements: str) -> None:
    """Run statements and commit each."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def published(engine: Engine) -> list[str]:
    """Return the type and context of each event."""
    with engine.connect() as connection:
        statement = "SELECT event_type || ' ' || event_context::text FROM outbox.event ORDER BY position"
        return list(connection.scalars(text(statement)))


@pytest.fixture
def look(login: Callable[..., Engine]) -> Callable[[], Check]:
    """Return a function that looks as a role which has no right on any captured table."""
    engine = login("outbox_pipeline")
    return lambda: check_captures(engine)


@pytest.fixture
def orders(outbox_engine: Engine) -> Engine:
    """A database with a captured table `orders`, of which one column is left out."""
    run(outbox_engine, *ORDERS)
    return outbox_engine


def test_tables_that_are_seen_are_no_finding(outbox_engine: Engine, look: Callable[[], Check]) -> None:
    """Nothing captured, a captured table, and one that was captured twice."""
    before = look()
    run(outbox_engine, *ORDERS)
    once = look()
    run(outbox_engine, "SELECT outbox.capture('orders')")

    assert (before.ok, before.message) == (True, "No table is captured.")
    assert once == look() == Check("captured tables", True, "Every change of 1 captured table fires its triggers.")


BREAKS = {
    "disabled": (
        ["ALTER TABLE orders DISABLE TRIGGER outbox_capture_insert"],
        "public.orders has triggers that are disabled (outbox_capture_insert): "
        "ALTER TABLE public.orders ENABLE TRIGGER outbox_capture_insert; as its owner.",
    ),
    "disabled all": (["ALTER TABLE orders DISABLE TRIGGER ALL"], "outbox_capture_delete, outbox_capture_insert, "),
    "for replicas only": (
        ["ALTER TABLE orders ENABLE REPLICA TRIGGER outbox_capture_insert"],
        "triggers that are disabled (outbox_capture_insert)",
    ),
    "missing": (
        ["DROP TRIGGER outbox_capture_insert ON orders", "DROP TRIGGER outbox_capture_truncate ON orders"],
        "public.orders has no trigger for INSERT, TRUNCATE: SELECT outbox.capture('public.orders', "
        "event_type => 'orders', except_columns => '{note}'); as its owner.",
    ),
    "doubled": (
        ["ALTER TRIGGER outbox_capture_insert ON orders RENAME TO other", "SELECT old_capture('orders')"],
        "public.orders has more than one trigger for INSERT, so it is published twice: SELECT outbox.capture(",
    ),
    "parent": (
        ["CREATE TABLE late_orders () INHERITS (orders)"],
        "public.orders has the child public.late_orders, whose own statements fire none of its triggers: "
        "ALTER TABLE public.late_orders NO INHERIT public.orders; as its owner.",
    ),
    "partition": (
        [
            "DROP TRIGGER outbox_capture_refuses_parent ON orders",
            "CREATE TABLE all_orders (id int, note text) PARTITION BY RANGE (id)",
            "ALTER TABLE all_orders ATTACH PARTITION orders FOR VALUES FROM (0) TO (100)",
        ],
        "public.orders is a partition of public.all_orders, whose statements fire none of its triggers: "
        "ALTER TABLE public.all_orders DETACH PARTITION public.orders; as its owner.",
    ),
    "child": (
        [
            "DROP TRIGGER outbox_capture_refuses_parent ON orders",
            "CREATE TABLE all_orders (id int, note text)",
            "ALTER TABLE orders INHERIT all_orders",
        ],
        "public.orders is a child of public.all_orders, whose statements fire none of its triggers: "
        "ALTER TABLE public.orders NO INHERIT public.all_orders; as its owner.",
    ),
}

#: What capture did in a release before: it left triggers of another name where they were.
_OLD_CAPTURE = (
    "CREATE FUNCTION old_capture(name regclass) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE format("
    "'CREATE TRIGGER outbox_capture_insert AFTER INSERT ON %%s REFERENCING NEW TABLE AS new_row FOR EACH STATEMENT"
    " EXECUTE FUNCTION outbox.publish_captured(''orders_inserted'', ''development'', ''1'', ''{}'', ''{note}'')',"
    " name); END $$"
)


@pytest.mark.parametrize(("statements", "said"), BREAKS.values(), ids=BREAKS.keys())
def test_what_passes_by_is_named_with_what_helps(
    orders: Engine, look: Callable[[], Check], statements: list[str], said: str
) -> None:
    """The finding fails the doctor, the statement in it is run, nothing is found, and a row is published once."""
    run(orders, _OLD_CAPTURE, *statements)
    found = look()
    assert (found.ok, found.is_warning) == (False, False)
    assert said in found.message

    run(orders, *_REMEDY.findall(found.message))

    assert look().message == "Every change of 1 captured table fires its triggers."
    run(orders, "INSERT INTO orders VALUES (1, 'left out')")
    assert published(orders) == ['orders_inserted {"new" : {"id":1}}']


@pytest.fixture
def loader(outbox_engine: Engine) -> Iterator[str]:
    """A role whose name needs quotes."""
    name = f'"Loads at {uuid4().hex[:8]}"'
    run(outbox_engine, f"CREATE ROLE {name}")
    yield name
    run(outbox_engine, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


@pytest.mark.parametrize("place", ["ROLE {role}", "ROLE {role} IN DATABASE {database}", "DATABASE {database}"])
def test_sessions_that_fire_no_triggers_are_warned_of(
    orders: Engine, look: Callable[[], Check], loader: str, place: str
) -> None:
    """Where a role or a database sets session_replication_role; triggers that fire always are no finding."""
    target = place.format(role=loader, database=orders.url.database)
    always = [
        f"ALTER TABLE orders ENABLE ALWAYS TRIGGER outbox_capture_{event}"
        for event in ("insert", "update", "delete", "truncate")
    ]
    run(orders, f"ALTER {target} SET session_replication_role = replica")
    found = look()
    run(orders, *_REMEDY.findall(found.message))
    reset = look()
    run(orders, f"ALTER {target} SET session_replication_role = replica", *always, ORDERS[1])
    kept = look()
    run(orders, f"ALTER {target} RESET session_replication_role")
    with orders.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql("INSERT INTO orders VALUES (1)")

    assert (found.ok, found.is_warning) == (True, True)
    assert f"ALTER {target} RESET session_replication_role; as a superuser, or ALTER TABLE with" in found.message
    assert not reset.is_warning
    assert not kept.is_warning
    assert len(published(orders)) == 1


def test_a_table_that_took_anothers_place_is_warned_of(orders: Engine, look: Callable[[], Check]) -> None:
    """A migration that swaps tables by name leaves the triggers with the old one."""
    run(orders, "ALTER TABLE orders RENAME TO orders_before", "CREATE TABLE orders (id int, note text)")
    found = look()
    run(orders, *_REMEDY.findall(found.message), "INSERT INTO orders VALUES (1, 'left out')")

    assert (found.ok, found.is_warning) == (True, True)
    assert "public.orders_before publishes under the name of public.orders, which is not captured" in found.message
    assert not look().is_warning
    assert published(orders) == ['orders_inserted {"new" : {"id":1}}']


def test_a_subscription_into_a_captured_table_is_warned_of(orders: Engine, look: Callable[[], Check]) -> None:
    """What it writes is not published, and no statement here changes that."""
    run(
        orders,
        "CREATE SUBSCRIPTION shop_copy CONNECTION 'dbname=nowhere' PUBLICATION none"
        " WITH (connect = false, slot_name = NONE)",
        "INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)"
        " SELECT oid, 'orders'::regclass, 'r' FROM pg_subscription WHERE subname = 'shop_copy'",
    )
    found = look()
    run(orders, "DROP SUBSCRIPTION shop_copy")

    assert (found.ok, found.is_warning) == (True, True)
    assert "What the subscription shop_copy writes into public.orders fires no triggers" in found.message


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE all_orders ATTACH PARTITION orders FOR VALUES FROM (0) TO (100)",
        "ALTER TABLE orders INHERIT plain_orders",
    ],
)
def test_a_captured_table_gets_no_parent(orders: Engine, statement: str) -> None:
    """PostgreSQL refuses it, and its words name the trigger that is there for it; released, the table may have one."""
    run(
        orders,
        "CREATE TABLE all_orders (id int, note text) PARTITION BY RANGE (id)",
        "CREATE TABLE plain_orders (id int, note text)",
    )

    with pytest.raises(DBAPIError, match='trigger "outbox_capture_refuses_parent" prevents table "orders"'):
        run(orders, statement)
    run(orders, "INSERT INTO orders VALUES (1, 'x')", "DELETE FROM orders")
    assert len(published(orders)) == 2
    run(orders, "SELECT outbox.release_capture('orders')", statement)


def test_names_that_need_quotes_are_quoted(outbox_engine: Engine, look: Callable[[], Check]) -> None:
    """Schema, table, trigger and the arguments of capture come back as they were given."""
    table = '''"Od'd".".; DROP"'''
    literal = table.replace("'", "''")
    run(
        outbox_engine,
        '''CREATE SCHEMA "Od'd"''',
        f'CREATE TABLE {table} ("a\'b" int, c int)',
        f"SELECT outbox.capture('{literal}', E'it''s_inserted\\\\', 'pro''d', '{{a''b}}', metadata_version => 7)",
    )
    run(outbox_engine, f"DROP TRIGGER outbox_capture_insert ON {table}")
    found = look()
    # The name of the table has the letter that ends a statement in a sentence.
    statement = found.message.partition("INSERT: ")[2].rpartition("; as its owner")[0]
    run(outbox_engine, statement.replace("%", "%%"), f"INSERT INTO {table} VALUES (1, 2)")

    assert look().ok
    with outbox_engine.connect() as connection:
        row = connection.execute(text("SELECT event_type, environment, metadata_version FROM outbox.event")).one()
    assert tuple(row) == ("it's_inserted\\_inserted", "pro'd", 7)
    assert published(outbox_engine) == ['it\'s_inserted\\_inserted {"new" : {"a\'b":1}}']
