"""Behind a pooler each transaction may run in another server session, which other clients use before and after it.

So nothing may span two transactions of a session, and nothing may stay in one. Statement pooling has no transactions
and is refused.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from outbox_pipeline import publish_event
from outbox_pipeline.errors import ConfigurationError, LedgerError
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.monitoring.metrics import metrics_text
from outbox_pipeline.monitoring.status import read_status
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.postgres.leases import read_batches
from outbox_pipeline.postgres.schema import migrate
from outbox_pipeline.postgres.tables import batch as batch_table
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores, open_stores
from tests.fixtures import sessions
from tests.fixtures.commands import run_outbox
from tests.fixtures.django_project import on_database
from tests.fixtures.events import assert_each_exactly_once, committed_ids, publish
from tests.fixtures.instances import assert_whole, cloned
from tests.fixtures.pgbouncer import Pool, Through, left_behind, pooled, url_to
from tests.fixtures.retained import age
from tests.fixtures.servers import Servers
from tests.fixtures.sessions import KINDS, Opener, driver_url, ids
from tests.fixtures.stores import fresh_database, url_of

#: More than psycopg sends before it prepares a statement.
OFTEN = 12

#: What docs/publishing.md says for asyncpg.
ASYNCPG = {"statement_cache_size": 0}
ASYNCPG_BELOW_SQLALCHEMY = ASYNCPG | {"prepared_statement_cache_size": 0, "prepared_statement_name_func": str}
OPTIONS: dict[Opener, dict[str, Any]] = {
    sessions.asyncpg_connection: ASYNCPG,
    sessions.asyncpg_pooled: ASYNCPG,
    sessions.async_session_on_asyncpg: {"connect_args": ASYNCPG_BELOW_SQLALCHEMY},
    sessions.async_connection: {"connect_args": ASYNCPG_BELOW_SQLALCHEMY},
}

SENTENCE = "use pool_mode = transaction or session for this database"


@pytest.fixture(scope="module")
def shared_url(shared_engine: Engine) -> Iterator[str]:
    """The database of `shared_engine` through transaction pooling: one server session for all clients."""
    with pooled(shared_engine.url.render_as_string(hide_password=False)) as url:
        yield url


async def publish_often(kind: Opener, url: str) -> list[UUID]:
    """Publish in each way, often enough for anything to be prepared, as two clients one after the other."""
    published: list[UUID] = []
    for _ in range(2):
        async with kind(url, **OPTIONS.get(kind, {})) as opened:
            for number in range(OFTEN):
                published.append(await opened.publish({"n": number}, event_type="t"))
                published += await opened.publish_many([{"n": number}] * 2, event_type="t", required=False)
            await opened.publish({"n": 0}, event_type="t", event_id=published[-1])
            await opened.commit()
    return published


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_session_publishes_through_a_pooler(kind: Opener, shared_url: str, published: Engine) -> None:
    """Each event is there once, and the next client finds its session as it would have been without us."""
    before = left_behind(shared_url)
    event_ids = asyncio.run(publish_often(kind, shared_url))

    assert ids(published) == event_ids
    assert left_behind(shared_url) ^ before == set()


def test_django_publishes_through_a_pooler(shared_url: str, published: Engine, django_project: None) -> None:
    """Django sets a time zone for itself and prepares nothing; publishing adds nothing to that."""
    from django.db import transaction

    from outbox_pipeline.django import publish_event as publish_in_django

    before = left_behind(shared_url)
    event_ids = []
    for _ in range(2):
        with on_database(shared_url), transaction.atomic():
            event_ids += [publish_in_django({"n": number}, event_type="t") for number in range(OFTEN)]

    assert ids(published) == event_ids
    left = left_behind(shared_url) ^ before
    assert {what for what, _ in left} <= {"setting TimeZone"}


PREPARING = (sessions.session, sessions.psycopg_connection, sessions.async_session, sessions.psycopg_async)


@pytest.mark.parametrize("kind", PREPARING, ids=lambda kind: kind.__name__)
def test_without_a_pooler_publishing_is_prepared(kind: Opener, published: Engine) -> None:
    """PostgreSQL itself answers: psycopg prepares what is sent often, which makes an event a quarter cheaper."""
    url = published.url.render_as_string(hide_password=False)

    async def work() -> None:
        async with kind(url) as opened:
            for number in range(2 * OFTEN):
                await opened.publish({"n": number}, event_type="t")
            await opened.run(
                "INSERT INTO business SELECT count(*) FROM pg_prepared_statements"
                " WHERE statement LIKE '%INSERT INTO outbox.event%'"
            )
            await opened.commit()

    asyncio.run(work())

    with published.connect() as connection:
        assert connection.scalar(text("SELECT number FROM business")) == 1


def test_the_application_keeps_its_own_way_of_preparing(shared_url: str, published: Engine) -> None:
    """What the application set for its connection stays, when an event is refused too, and holds for its statements."""
    engine = create_engine(shared_url, connect_args={"prepare_threshold": 3})
    with engine.connect() as connection:
        for number in range(OFTEN):
            publish_event(connection, {"n": number}, event_type="t")
        for statement in ("SELECT 1 / 0", "SELECT 'failed'"):
            with pytest.raises(DBAPIError):
                connection.execute(text(statement))
        with pytest.raises(DBAPIError):
            publish_event(connection, {"n": 0}, event_type="t")
        connection.rollback()
        driver: Any = connection.connection.driver_connection
        assert driver.prepare_threshold == 3
        for _ in range(5):
            connection.execute(text("SELECT 'the application''s'"))
        prepared = list(connection.scalars(text("SELECT statement FROM pg_prepared_statements")))
    engine.dispose()
    with psycopg.connect(driver_url(shared_url), autocommit=True) as client:
        client.execute("DEALLOCATE ALL")

    assert prepared == ["SELECT 'the application''s'"]


def test_the_whole_ledger_works_through_a_pooler(through: Through, stores: Stores) -> None:
    """Batches at once with their heartbeats, and every procedure after them; both sides have the same events.

    One server session for all of it: nothing waits for a second one while it holds the first.
    """
    here = through()
    publish(stores.engine, 40)
    few = here.settings.model_copy(update={"batch_max_events": 10, "retention_days": 1})
    here = Stores(here.engine, here.client, few)

    done = relay(here, until_empty=True)

    assert (done.batch_count, done.failures) == (4, ())
    assert_each_exactly_once(stores.engine, stores.client)
    assert reconcile(here).differences == ()
    assert read_status(here.engine).processed == 40
    assert adopt(here).was_own
    assert "outbox_up 1.0" in metrics_text(few)[0]
    assert len(record_completeness(here).days) == 1
    age(stores)
    assert prune(here).events == 40


def test_batches_are_read_at_once_through_a_pooler(through: Through, stores: Stores) -> None:
    """More readers than server sessions: what one of them began is never gone on with in another's session."""
    here = through(size=2)
    publish(stores.engine, 40)
    relay(Stores(stores.engine, stores.client, stores.settings.model_copy(update={"batch_max_events": 10})))
    with ledger_transaction(stores.engine) as connection:
        (batch,) = read_batches(connection, batch_table.c.batch_id.is_not(None))

    with ThreadPoolExecutor(6) as readers:
        counts = list(readers.map(lambda _: extract_events(here.engine, batch.batch_id).num_rows, range(60)))

    assert counts == [10] * 60


def test_types_that_a_pooler_hides_are_named(through: Through, stores: Stores) -> None:
    """Where names are quoted and options are refused, a sentence says what to reset, and then batches are read."""
    publish(stores.engine)
    batch = cut_batches(stores.engine, stores.settings, limit=1).batches[0]
    database = f'ALTER DATABASE "{stores.engine.url.database}"'
    with stores.engine.begin() as connection:
        connection.exec_driver_sql(f"{database} SET quote_all_identifiers = on")

    here = through()
    with pytest.raises(ConfigurationError, match=r"RESET quote_all_identifiers.*RECONNECT"):
        extract_events(here.engine, batch.batch_id)
    finding = next(check for check in examine(here.settings) if check.name == "bulk read")
    assert not finding.ok
    assert "RESET quote_all_identifiers" in finding.message

    with stores.engine.begin() as connection:
        connection.exec_driver_sql(f"{database} RESET quote_all_identifiers")
    assert extract_events(through().engine, batch.batch_id).num_rows == 1


def test_the_doctor_says_that_there_is_a_pooler(through: Through, stores: Stores) -> None:
    """It knows by who answered the login; nothing else is wrong on that way, and without one nothing is said."""
    found = {one.name: one for one in examine(through().settings)}
    direct = {one.name: one for one in examine(stores.settings)}

    assert ", through a pooler," in found["postgres"].message
    assert "pooler" not in direct["postgres"].message
    assert {name: one.ok for name, one in found.items()} == {name: one.ok for name, one in direct.items()}


def deliver(here: Stores) -> None:
    """Deliver everything."""
    relay(here, until_empty=True)


def fail(here: Stores) -> None:
    """Fail in the middle of a ledger transaction, and of a read."""

    def work(connection: Connection) -> None:
        connection.execute(text("SELECT 1 / 0"))

    with pytest.raises(LedgerError, match="DivisionByZero"), ledger_transaction(here.engine) as connection:
        work(connection)


@pytest.mark.parametrize("work", [deliver, fail])
def test_the_next_client_finds_its_session_unchanged(
    work: Callable[[Stores], None], through: Through, stores: Stores
) -> None:
    """Every setting is as before, and nothing prepared, locked, temporary or listened to is left."""
    here = through()
    publish(stores.engine, 5)
    before = left_behind(url_to(here))

    work(here)

    assert left_behind(url_to(here)) ^ before == set()


def test_session_pooling_delivers(through: Through, stores: Stores) -> None:
    """Each connection has a server session for as long as it is open, as without a pooler."""
    here = through(mode="session", size=10)
    publish(stores.engine, 5)

    relay(here, until_empty=True)

    assert_each_exactly_once(stores.engine, stores.client)


@pytest.fixture
def without_transactions(
    stores: Stores, pool: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Any]:
    """Return a function that runs a command through statement pooling."""
    publish(stores.engine, 3)
    url = pool(stores.engine.url.render_as_string(hide_password=False), mode="statement")
    assert stores.settings.clickhouse_url
    monkeypatch.setenv("OUTBOX_POSTGRES_URL", url)
    monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", stores.settings.clickhouse_url.get_secret_value())
    monkeypatch.setenv("OUTBOX_HOME", str(tmp_path / "home"))
    line = json.dumps({"event_type": "t", "event_context": {}})
    return lambda *arguments: run_outbox(*arguments, given=f"{line}\n" * 3)


def test_statement_pooling_is_refused(without_transactions: Callable[..., Any], stores: Stores) -> None:
    """One sentence says what to do, and nothing was written."""
    events = committed_ids(stores.engine)

    for command in ("init", "doctor", "relay", "status", "publish -", "reconcile"):
        result = without_transactions(*command.split())
        assert result.exit_code != 0, command
        assert " ".join(result.output.split()).count(SENTENCE) == 1, result.output
        assert "Traceback" not in result.output
    assert committed_ids(stores.engine) == events
    assert read_status(stores.engine).pending == 3


@pytest.mark.parametrize("kind", PREPARING, ids=lambda kind: kind.__name__)
def test_an_event_is_refused_by_statement_pooling(kind: Opener, pool: Pool, published: Engine) -> None:
    """The library's own error comes with what to do, best effort or not, and there is no event."""
    url = pool(published.url.render_as_string(hide_password=False), mode="statement")

    async def work(**manner: Any) -> None:
        async with kind(url) as opened:
            with pytest.raises(Exception, match="statement pooling mode") as refused:
                await opened.publish_many([{"n": 1}] * 3, event_type="t", **manner)
            assert any(SENTENCE in note for note in refused.value.__notes__)

    asyncio.run(work())
    asyncio.run(work(required=False))

    assert ids(published) == []


def test_a_file_is_published_through_a_pooler(
    through: Through, stores: Stores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`outbox publish` writes each event of the file, however often it is called, and leaves nothing in the session."""
    url = url_to(through())
    monkeypatch.setenv("OUTBOX_POSTGRES_URL", url)
    monkeypatch.setenv("OUTBOX_HOME", str(tmp_path / "home"))
    before = left_behind(url)
    event_ids = [uuid4() for _ in range(3 * OFTEN)]
    for some in (event_ids[:OFTEN], event_ids[OFTEN:]):
        lines = [json.dumps({"event_type": "t", "event_context": {}, "event_id": str(one)}) for one in some]
        result = run_outbox("publish", "-", given="\n".join(lines))
        assert result.exit_code == 0, result.output

    assert committed_ids(stores.engine) == set(event_ids)
    assert left_behind(url) ^ before == set()


def test_a_clone_is_adopted_through_a_pooler(through: Through, stores: Stores, servers: Servers, pool: Pool) -> None:
    """What ClickHouse shows goes through a temporary table, of which the next client finds nothing."""
    publish(stores.engine, 5)
    relay(stores, until_empty=True)
    with cloned(stores, servers) as clone:
        url = pool(clone.engine.url.render_as_string(hide_password=False))
        with open_stores(clone.settings.model_copy(update={"postgres_url": SecretStr(url)})) as here:
            before = left_behind(url)
            done = adopt(here)
            publish(clone.engine, 5)
            relay(here, until_empty=True)

            assert not done.was_own
            assert_whole(here)
            assert left_behind(url) ^ before == set()


def test_a_schema_is_made_through_a_pooler(servers: Servers, pool: Pool) -> None:
    """`outbox init` works through transaction pooling, and again."""
    with fresh_database(servers) as name:
        url = pool(url_of(servers, name))
        engine = create_outbox_engine(Settings(postgres_url=SecretStr(url)), pooled=False)
        before = left_behind(url)
        version = migrate(engine)
        assert migrate(engine) == version
        assert left_behind(url) ^ before == set()
