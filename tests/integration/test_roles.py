"""A producer can publish and a pipeline can deliver; neither can do anything else to the outbox."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.orm import Session

from outbox_pipeline import publish_event, publish_events
from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.monitoring.status import read_status
from outbox_pipeline.monitoring.trace import trace_event
from outbox_pipeline.operations import quarantine
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.repair import repair
from outbox_pipeline.postgres.schema import latest_version, migrate
from outbox_pipeline.processes import wait_until
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import change, forget
from tests.fixtures.events import assert_each_exactly_once, committed_ids, delivered_ids, publish, publish_in
from tests.fixtures.pages import ROOT, fences
from tests.fixtures.roles import PUBLISH, PUBLISH_JSONB, LoginUrl, logins
from tests.fixtures.servers import Servers
from tests.fixtures.stores import OWN_IDENTITY, fresh_database, url_of

EVENT = "INSERT INTO outbox.event (event_type, environment, event_context) VALUES ('t', 'test', '{}')"


@pytest.fixture
def producer(login: Callable[..., Engine]) -> Engine:
    """An engine of a member of outbox_producer."""
    return login("outbox_producer")


@pytest.fixture
def pipeline(stores: Stores, login_url: LoginUrl) -> Iterator[Stores]:
    """Both stores, PostgreSQL as a member of outbox_pipeline."""
    url = login_url("outbox_pipeline")
    engine = create_engine(url, isolation_level="READ COMMITTED")
    settings = stores.settings.model_copy(update={"postgres_url": SecretStr(url)})
    yield replace(stores, engine=engine, settings=settings)
    engine.dispose()


@dataclass(frozen=True)
class Closed:
    """An outbox with two events, to which statements are sent that are refused and leave it as it is, and who sends."""

    owner: Engine
    producer: Engine
    pipeline: Engine
    stranger: Engine


@pytest.fixture(scope="module")
def closed(servers: Servers, migrated_template: str) -> Iterator[Closed]:
    """One outbox, and one login of each kind, for all statements."""
    with fresh_database(servers, template=migrated_template) as name:
        owner = create_engine(url_of(servers, name))
        with owner.begin() as connection:
            connection.execute(OWN_IDENTITY)
        publish(owner, 2)
        with logins(url_of(servers, name)) as login_url:
            engines = [create_engine(login_url(*groups)) for groups in (("outbox_producer",), ("outbox_pipeline",), ())]
            stranger = engines[-1].url.username
            with owner.begin() as connection:
                connection.execute(text(f"GRANT USAGE ON SCHEMA outbox TO {stranger}"))
                connection.execute(text("CREATE TABLE mine (id integer)"))
                connection.execute(text(f"ALTER TABLE mine OWNER TO {stranger}"))
            yield Closed(owner, *engines)
            for engine in engines:
                engine.dispose()
        owner.dispose()


def refusal(engine: Engine, statement: str) -> str | None:
    """Return the SQLSTATE with which PostgreSQL refuses a statement."""
    with engine.connect() as connection, pytest.raises(psycopg.Error) as refused:
        send(connection.connection.cursor(), statement)
    return refused.value.sqlstate


def send(cursor: Any, statement: str) -> None:
    """Execute a statement, COPY included, of which the driver wants to know beforehand."""
    if statement.startswith("COPY"):
        with cursor.copy(statement):
            return
    cursor.execute(statement)


def test_a_producer_publishes_from_python(producer: Engine, outbox_engine: Engine) -> None:
    """One event, many events, and a repeated id: the whole publish API needs no more than the role."""
    event_id = uuid4()
    with Session(producer) as session, session.begin():
        for _ in range(2):
            publish_event(session, {"n": 1}, event_type="t", event_id=event_id)
        event_ids = publish_events(session, [{"n": n} for n in range(2000)], event_type="t")

    assert committed_ids(outbox_engine) == {event_id, *event_ids}


def test_a_producer_publishes_in_sql(producer: Engine, outbox_engine: Engine) -> None:
    """The function publishes with every argument, and a repeated id changes nothing."""
    statement = text(
        "SELECT outbox.publish('t', '{}', 'test', 2, '2026-01-01Z', '00000000-0000-0000-0000-000000000001', 'trace')"
    )
    for _ in range(2):
        with producer.begin() as connection:
            assert connection.scalar(statement) == UUID(int=1)

    assert committed_ids(outbox_engine) == {UUID(int=1)}


def test_the_function_alone_publishes_and_reads_not_even_ids(
    login: Callable[..., Engine], outbox_engine: Engine
) -> None:
    """A role with the rights of the page and none on any table can publish, and that is all."""
    caller = login()
    (granting,) = [code for code in fences(ROOT / "docs" / "publishing.md", "sql") if "CREATE ROLE kiosk" in code]
    grants = granting.partition("\n")[2].replace("kiosk", str(caller.url.username))
    with outbox_engine.begin() as connection:
        connection.exec_driver_sql(grants)

    with caller.begin() as connection:
        statement = text("SELECT outbox.publish('t', '{}') UNION ALL SELECT outbox.publish('t', CAST('{}' AS jsonb))")
        event_ids = set(connection.scalars(statement))

    assert committed_ids(outbox_engine) == event_ids
    assert len(event_ids) == 2
    assert refusal(caller, "SELECT event_id FROM outbox.event") == "42501"


def test_the_function_holds_the_lock_that_a_cut_looks_for(producer: Engine, outbox_engine: Engine) -> None:
    """An event published by the function and committed late, after later ones were cut, is cut too."""
    with producer.connect() as slow:
        slow.execute(text("SELECT outbox.publish('t', '{}')"))
        publish(outbox_engine)
        first = cut_batches(outbox_engine, Settings(), limit=1)
        still = cut_batches(outbox_engine, Settings(), limit=1)
        slow.commit()

    second = cut_batches(outbox_engine, Settings(), limit=1)

    assert (first.event_count, still.event_count, second.event_count) == (1, 0, 1)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT event_context FROM outbox.event",
        "SELECT * FROM outbox.event",
        "SELECT event_type, position FROM outbox.event",
        "SELECT ctid, xmin FROM outbox.event",
        "SELECT * FROM outbox.event_status",
        EVENT + " RETURNING position",
        EVENT + " RETURNING event_context",
        "INSERT INTO outbox.event (position, event_type, environment, event_context) VALUES (1, 't', 'test', '{}')",
        "INSERT INTO outbox.event (position, event_type, environment, event_context)"
        " OVERRIDING SYSTEM VALUE VALUES (1000000, 't', 'test', '{}')",
        "INSERT INTO outbox.event (event_type, environment, event_context, recorded_at)"
        " VALUES ('t', 'test', '{}', '2026-01-01Z')",
        "INSERT INTO outbox.event (event_type, environment, event_context, published_by)"
        " VALUES ('t', 'test', '{}', 'somebody else')",
        "COPY outbox.event (event_type, environment, event_context, published_by) FROM STDIN",
        "SELECT published_by FROM outbox.event",
        "SET SESSION AUTHORIZATION outbox_pipeline",
        "COPY outbox.event (position, event_type, environment, event_context) FROM STDIN",
        "COPY outbox.event FROM STDIN",
        "COPY outbox.event (event_context) TO STDOUT",
        EVENT + " ON CONFLICT (event_id) DO UPDATE SET event_type = 'other'",
        "UPDATE outbox.event SET event_type = 'other'",
        "DELETE FROM outbox.event",
        "TRUNCATE outbox.event",
        "LOCK TABLE outbox.event IN ACCESS EXCLUSIVE MODE",
        "SELECT setval('outbox.event_position_seq', 1)",
        "SELECT nextval('outbox.event_position_seq')",
        "SELECT currval('outbox.event_position_seq')",
        "SELECT last_value FROM outbox.event_position_seq",
        "SELECT outbox.advance_positions(1000000)",
        "SELECT outbox.move_events('{1}')",
        *(
            f"SELECT * FROM outbox.{table}"
            for table in ("batch", "unclaimed", "gap", "quarantined_event", "delivered_elsewhere")
        ),
        *(
            f"DELETE FROM outbox.{table}"
            for table in ("batch", "unclaimed", "gap", "quarantined_event", "delivered_elsewhere")
        ),
        "UPDATE outbox.batch SET status = 'processed'",
        "UPDATE outbox.unclaimed SET positions = '{}'",
        "INSERT INTO outbox.gap (positions, holders) VALUES ('{[1,2)}', '{}')",
        "UPDATE outbox.schema_version SET version_num = '1'",
        "ALTER TABLE outbox.event DISABLE TRIGGER event_is_never_updated",
        "DROP TRIGGER event_is_never_updated ON outbox.event",
        "SET session_replication_role = replica",
        "CREATE TABLE outbox.mine (id integer)",
        "CREATE FUNCTION outbox.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE TRIGGER mine BEFORE UPDATE ON outbox.event"
        " FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        f"ALTER FUNCTION {PUBLISH} SECURITY INVOKER",
        "SELECT outbox.grant_roles()",
        "SET ROLE outbox_pipeline",
    ],
)
def test_a_producer_can_do_nothing_but_publish(closed: Closed, statement: str) -> None:
    """PostgreSQL refuses reading events, choosing positions, and touching ledger, triggers and schema."""
    assert refusal(closed.producer, statement) in ("42501", "428C9")
    assert len(committed_ids(closed.owner)) == 2


def test_a_producer_sees_ids_and_nothing_else(producer: Engine, outbox_engine: Engine) -> None:
    """What ON CONFLICT (event_id) needs is the one thing a producer reads."""
    event_ids = publish(outbox_engine, 2)

    with producer.begin() as connection:
        assert list(connection.scalars(text("SELECT event_id FROM outbox.event"))) == event_ids


def test_who_wrote_an_event_is_noted(login: Callable[..., Engine], outbox_engine: Engine) -> None:
    """By every way to publish it is the role that had logged in, also after SET ROLE."""
    producer = login("outbox_producer")
    name = producer.url.username
    with outbox_engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id int)")
        connection.exec_driver_sql("SELECT outbox.capture('orders')")
        connection.exec_driver_sql(f"GRANT INSERT ON orders TO {name}")
    with producer.begin() as connection:
        publish_event(connection, {"n": 1}, event_type="one")
        publish_events(connection, [{"n": 1}, {"n": 2}], event_type="many")
        connection.exec_driver_sql(EVENT)
        connection.exec_driver_sql("SELECT outbox.publish('function', '{}')")
        connection.exec_driver_sql("INSERT INTO orders VALUES (1)")
        connection.exec_driver_sql("SET ROLE outbox_producer")
        connection.exec_driver_sql("SELECT outbox.publish('other role', '{}')")

    with outbox_engine.begin() as connection:
        rows = connection.execute(text("SELECT published_by, event_type FROM outbox.event ORDER BY position"))
        assert [tuple(row) for row in rows] == [
            (name, event_type)
            for event_type in ("one", "many", "many", "t", "function", "orders_inserted", "other role")
        ]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT outbox.publish('t', '{}')",
        "SELECT outbox.publish('t', '{}'::jsonb)",
        "SELECT outbox.advance_positions(1000000)",
        "SELECT outbox.capture('mine')",
        "SELECT outbox.grant_roles()",
        EVENT,
        "SELECT event_id FROM outbox.event",
    ],
)
def test_a_role_outside_both_cannot_even_publish(closed: Closed, statement: str) -> None:
    """Nothing of the outbox is open to everybody, not even to a role that may look into the schema."""
    assert refusal(closed.stranger, statement) == "42501"


def test_granting_again_closes_what_a_restore_without_privileges_opened(
    login: Callable[..., Engine], outbox_engine: Engine
) -> None:
    """grant_roles leaves the rights as a migration does, whatever they were."""
    stranger, producer = login(), login("outbox_producer")
    with outbox_engine.begin() as connection:
        connection.execute(text("GRANT USAGE ON SCHEMA outbox TO PUBLIC"))
        connection.execute(text("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox TO PUBLIC"))
        connection.execute(text(f"REVOKE ALL ON FUNCTION {PUBLISH}, {PUBLISH_JSONB} FROM outbox_producer"))
        connection.execute(text("SELECT outbox.grant_roles()"))

    with producer.begin() as connection:
        connection.execute(text("SELECT outbox.publish('t', '{}'), outbox.publish('t', '{}'::jsonb)"))
    for statement in ("SELECT outbox.publish('t', '{}')", "SELECT outbox.publish('t', '{}'::jsonb)"):
        assert refusal(stranger, statement) == "42501"


def test_the_pipeline_delivers_with_its_role_alone(stores: Stores, pipeline: Stores) -> None:
    """Cut, late commits, delivery, quarantine, status, trace and doctor work, and every event arrives once."""
    with stores.engine.connect() as slow:
        publish_in(slow, 2)
        event_ids = publish(stores.engine, 50)
        publish(stores.engine, 2, context="[]")
        first = relay(pipeline, until_empty=True)
        slow.commit()

    second = relay(pipeline, until_empty=True)

    assert (first.delivered_count, first.quarantined_count, second.delivered_count) == (50, 2, 2)
    assert read_status(pipeline.engine).processed == 52
    assert trace_event(pipeline.engine, pipeline.settings, event_ids[0]).event is not None
    assert [check for check in examine(pipeline.settings) if check.ok is False] == []
    assert_each_exactly_once(stores.engine, stores.client)


def test_the_pipeline_reconciles_and_repairs(stores: Stores, pipeline: Stores) -> None:
    """Comparing both sides, putting untracked events back and delivering again need no more than the same role."""
    publish(stores.engine, 300)
    relay(pipeline, until_empty=True)
    change(stores.client, "DELETE FROM {table:Identifier} WHERE position < 4", UUID(int=0))
    publish(stores.engine, 2)
    forget(stores.engine, "{[301,303)}")

    done = repair(pipeline, reconcile(pipeline, by_type=True))
    relay(pipeline, until_empty=True)

    assert (len(done.redelivered), done.put_back, done.left) == (1, 2, ())
    assert reconcile(pipeline).is_clean
    assert_each_exactly_once(stores.engine, stores.client)


def test_the_pipeline_resolves_quarantine_and_publishes(stores: Stores, pipeline: Stores) -> None:
    """Refused events are requeued and discarded, and corrected ones published, with the same role."""
    publish(stores.engine, 3, context="[]")
    relay(pipeline, until_empty=True)

    quarantine.requeue(pipeline.engine, Filter(quarantine_ids=frozenset({1})))
    quarantine.discard(pipeline.engine, Filter(quarantine_ids=frozenset({2})), note="test")
    with pipeline.engine.begin() as connection:
        publish_event(connection, {"corrected": True}, event_type="t")
    relay(pipeline, until_empty=True)

    assert_each_exactly_once(stores.engine, stores.client)


def test_the_pipeline_deletes_processed_events_only(stores: Stores, pipeline: Stores) -> None:
    """Pruning is the pipeline's; what is not delivered stays whoever asks."""
    publish(stores.engine, 3)
    relay(pipeline, until_empty=True)
    with pipeline.engine.begin() as connection:
        assert connection.execute(text("DELETE FROM outbox.event")).rowcount == 3
    publish(stores.engine, 1)

    assert refusal(pipeline.engine, "DELETE FROM outbox.event") == "23001"
    assert refusal(pipeline.engine, "SELECT outbox.move_events('{4}')") == "23001"


def test_the_pipeline_adopts(stores: Stores, pipeline: Stores) -> None:
    """A ledger that lost its last events and batches is taken over with the pipeline's role, the sequence included."""
    publish(stores.engine, 3)
    relay(pipeline, until_empty=True)
    with stores.engine.begin() as connection:
        connection.execute(text("DELETE FROM outbox.event WHERE position > 1"))
        connection.execute(text("DELETE FROM outbox.batch"))
        connection.execute(text("UPDATE outbox.unclaimed SET positions = '{[1,)}', timeline = timeline + 1"))
        connection.execute(text("SELECT setval('outbox.event_position_seq', 1)"))

    adopted = adopt(pipeline)
    publish(stores.engine, 1)
    relay(pipeline, until_empty=True)

    arrived = delivered_ids(stores.client)
    assert (adopted.sequence_before, adopted.adopted_events) == (1, 1)
    assert adopted.sequence_after > 3
    assert len(arrived) == len(set(arrived)) == 4
    assert committed_ids(stores.engine) <= set(arrived)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO outbox.event (position, event_type, environment, event_context)"
        " OVERRIDING SYSTEM VALUE VALUES (1000000, 't', 'test', '{}')",
        "COPY outbox.event FROM STDIN",
        "UPDATE outbox.event SET event_type = 'other'",
        "TRUNCATE outbox.event",
        "TRUNCATE outbox.batch CASCADE",
        "SELECT setval('outbox.event_position_seq', 1)",
        "SELECT nextval('outbox.event_position_seq')",
        "DELETE FROM outbox.unclaimed",
        "INSERT INTO outbox.unclaimed VALUES (false, '{}', 1, 1, 1)",
        "UPDATE outbox.gap SET holders = '{}'",
        "DELETE FROM outbox.quarantined_event",
        "UPDATE outbox.schema_version SET version_num = '1'",
        "ALTER TABLE outbox.event DISABLE TRIGGER ALL",
        "ALTER TABLE outbox.batch DROP CONSTRAINT batch_positions_belong_to_one_batch",
        "CREATE TABLE outbox.mine (id integer)",
        "SELECT outbox.capture('outbox.batch')",
        "SELECT outbox.grant_roles()",
    ],
)
def test_the_pipeline_can_do_no_more_than_deliver(closed: Closed, statement: str) -> None:
    """Events, positions, triggers and the schema stay out of the pipeline's reach."""
    assert refusal(closed.pipeline, statement) in ("42501", "428C9")


def test_the_pipeline_moves_positions_forward_only(stores: Stores, pipeline: Stores) -> None:
    """The one way to move the sequence never moves it back."""
    publish(stores.engine, 5)

    with pipeline.engine.begin() as connection:
        for past in (1000, 3):
            connection.execute(text("SELECT outbox.advance_positions(:past)"), {"past": past})
        last = connection.scalar(text("SELECT last_value FROM outbox.event_position_seq"))

    assert last == 1000


def grants(settings: Settings) -> Check:
    """Return the doctor's check of the current user's rights."""
    return next(check for check in examine(settings) if check.name == "grants")


@pytest.mark.parametrize(
    ("revoked", "named"),
    [
        ("DELETE ON outbox.gap", "(DELETE on outbox.gap)"),
        ("SELECT ON SEQUENCE outbox.event_position_seq", "(SELECT on sequence outbox.event_position_seq)"),
        (f"EXECUTE ON FUNCTION {PUBLISH}, {PUBLISH_JSONB}", "(EXECUTE on function outbox.publish("),
        ("EXECUTE ON FUNCTION outbox.advance_positions", "(EXECUTE on function outbox.advance_positions("),
        ("EXECUTE ON FUNCTION outbox.told_timeline", "(EXECUTE on function outbox.told_timeline("),
        ("EXECUTE ON FUNCTION outbox.move_events", "(EXECUTE on function outbox.move_events("),
        ("INSERT ON outbox.delivered_elsewhere", "(INSERT on outbox.delivered_elsewhere)"),
        ("UPDATE ON outbox.watermark", "(UPDATE on outbox.watermark)"),
        ("USAGE ON SCHEMA outbox", "(USAGE on schema outbox)"),
    ],
)
def test_doctor_names_the_right_that_is_missing(stores: Stores, pipeline: Stores, revoked: str, named: str) -> None:
    """One sentence has the rights the current user lacks and the statement that grants them, and no other."""
    with stores.engine.begin() as connection:
        connection.execute(text(f"REVOKE {revoked} FROM outbox_pipeline"))

    check = grants(pipeline.settings)

    assert check.ok is False
    assert named in check.message
    assert f"): SELECT outbox.grant_roles(); as {stores.engine.url.username}. Only" in check.message
    with stores.engine.begin() as connection:
        connection.execute(text("SELECT outbox.grant_roles()"))
    assert grants(pipeline.settings).ok


def test_roles_that_cannot_be_created_do_not_stop_a_migration(
    outbox_engine: Engine, login: Callable[..., Engine]
) -> None:
    """A user without CREATEROLE migrates where the roles are missing; once they exist the rights can be given."""
    owner = login().url.username
    migrations = files("outbox_pipeline.postgres.migrations").joinpath("sql")
    scripts = sorted((item for item in migrations.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
    with outbox_engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute("ALTER ROLE outbox_producer RENAME TO renamed_1; ALTER ROLE outbox_pipeline RENAME TO renamed_2")
        cursor.execute(f"DROP SCHEMA outbox CASCADE; CREATE SCHEMA outbox AUTHORIZATION {owner}; SET ROLE {owner}")
        for script in scripts:
            cursor.execute(script.read_text(encoding="utf-8"))
        cursor.execute("RESET ROLE; CREATE ROLE outbox_producer; CREATE ROLE outbox_pipeline")
        cursor.execute(f"SET ROLE {owner}; SELECT outbox.grant_roles()")
        cursor.execute("SELECT has_function_privilege('outbox_producer', 'outbox.capture_refusal'::regproc, 'EXECUTE')")
        row = cursor.fetchone()
        connection.rollback()

    assert row == (True,)


@pytest.mark.embedded_only
def test_databases_of_one_cluster_migrate_at_once(tmp_path: Path) -> None:
    """A first migration that meets another one's uncommitted roles waits for them and succeeds."""
    with embedded_engines(tmp_path / "home") as urls:
        first = create_engine(urls.postgres or "")
        with first.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("CREATE DATABASE second"))
        second = create_engine(make_url(urls.postgres or "").set(database="second"))
        with ThreadPoolExecutor(1) as pool, first.connect() as connection:
            connection.execute(text("CREATE ROLE outbox_producer"))
            migration = pool.submit(migrate, second)
            waited = wait_until(lambda: is_anybody_waiting(first) or migration.done(), seconds=60)
            connection.commit()
            version = migration.result(timeout=60)
        first.dispose()
        second.dispose()

    assert waited
    assert version == latest_version()


def is_anybody_waiting(engine: Engine) -> bool:
    """Return whether a transaction of the cluster waits for another one to end."""
    with engine.connect() as connection:
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'")
        return bool(connection.scalar(waiting))


def test_the_function_keeps_a_context_byte_for_byte(producer: Engine, outbox_engine: Engine) -> None:
    """The function that writes with its owner's rights writes what it was given."""
    context = '{"b": 1.10, "a":  [1e400]}'
    with producer.begin() as connection:
        connection.execute(text("SELECT outbox.publish('t', CAST(:context AS json))"), {"context": context})

    with outbox_engine.begin() as connection:
        assert connection.scalar(text("SELECT event_context::text FROM outbox.event")) == context
