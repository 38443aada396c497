"""The conditions the ledger rests on: each is enforced, and a ledger that cannot be trusted stops with a sentence."""

import json
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from outbox_pipeline.errors import LedgerError, TransientError
from outbox_pipeline.postgres.engine import PREPARE_THRESHOLD, begin_session, create_outbox_engine, ledger_transaction
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish, publish_in


def setting(connection: Connection, name: str) -> str:
    """Return a server setting as the transaction sees it."""
    return str(connection.scalar(text("SELECT current_setting(:name)"), {"name": name}))


def test_a_ledger_transaction_ignores_the_database_defaults(outbox_engine: Engine) -> None:
    """Whatever the database defaults to, a ledger transaction is READ COMMITTED and commits synchronously."""
    with outbox_engine.begin() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"))
        connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    outbox_engine.dispose()

    with ledger_transaction(outbox_engine, lock_timeout_seconds=3) as connection:
        assert setting(connection, "transaction_isolation") == "read committed"
        assert setting(connection, "synchronous_commit") == "on"
        assert setting(connection, "lock_timeout") == "3s"


@pytest.fixture
def careless_engine(postgres_url: str) -> Iterator[Engine]:
    """The engine of a role whose transactions are REPEATABLE READ and commit asynchronously, unless told otherwise."""
    name = f"careless_{uuid4().hex[:12]}"
    owner = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    url = make_url(postgres_url).set(username=name, password=name)
    engine = create_outbox_engine(Settings(postgres_url=SecretStr(url.render_as_string(hide_password=False))))
    with owner.connect() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{name}'"))
        connection.execute(text(f"ALTER ROLE {name} SET default_transaction_isolation = 'repeatable read'"))
        connection.execute(text(f"ALTER ROLE {name} SET synchronous_commit = off"))
        yield engine
        engine.dispose()
        connection.execute(text(f"DROP ROLE {name}"))
    owner.dispose()


def test_a_ledger_transaction_ignores_the_defaults_of_its_role(careless_engine: Engine, outbox_engine: Engine) -> None:
    """A role with dangerous defaults cuts late commits and rollbacks as any other does."""
    with ledger_transaction(careless_engine) as connection:
        assert setting(connection, "transaction_isolation") == "read committed"
        assert setting(connection, "synchronous_commit") == "on"
    with outbox_engine.connect() as slow:
        publish_in(slow)
        publish(outbox_engine)
        first = cut_batches(careless_engine, Settings(), limit=1)
        slow.commit()

    second = cut_batches(careless_engine, Settings(), limit=1)

    assert (first.event_count, second.event_count) == (1, 1)


def test_a_clock_set_back_over_midnight_loses_no_day(stores: Stores) -> None:
    """Events recorded on the day before the last cut one's go into batches of their own day, and all arrive."""
    days = [(2, "00:00:01"), (1, "23:59:58"), (2, "00:00:02"), (1, "23:59:59"), (2, "00:00:03")]
    cut = []
    for day, time in days:
        record_at(stores.engine, f"2026-03-0{day} {time}Z", 2)
        cut += cut_batches(stores.engine, stores.settings, limit=1).batches
    for day, time in days:
        record_at(stores.engine, f"2026-03-0{day} {time}Z", 2)
    cut += cut_batches(stores.engine, stores.settings, limit=9).batches

    relay(stores, until_empty=True)

    assert [(batch.recorded_on.day, batch.event_count) for batch in cut] == [
        *((day, 2) for day, _ in days),
        (2, 6),
        (1, 4),
    ]
    assert_each_exactly_once(stores.engine, stores.client)


def record_at(engine: Engine, recorded_at: str, count: int) -> None:
    """Publish events that the database's clock, as it stood, recorded at this time."""
    statement = text(
        "INSERT INTO outbox.event (event_type, event_date_time, environment, event_context, recorded_at)"
        " SELECT 't', CAST(:at AS timestamptz), 'test', '{}', CAST(:at AS timestamptz) FROM generate_series(1, :count)"
    )
    with engine.begin() as connection:
        connection.execute(statement, {"at": recorded_at, "count": count})


def test_an_engine_with_another_isolation_is_refused(postgres_url: str) -> None:
    """The ledger does not start on a connection that would lose late commits."""
    engine = create_engine(postgres_url, isolation_level="REPEATABLE READ")

    with pytest.raises(LedgerError, match="REPEATABLE READ"), ledger_transaction(engine):
        pass


def test_an_engine_that_only_reads_is_refused(postgres_url: str) -> None:
    """A ledger transaction that could write nothing says so before it does anything."""
    engine = create_engine(
        postgres_url, isolation_level="READ COMMITTED", execution_options={"postgresql_readonly": True}
    )

    with pytest.raises(LedgerError, match="read only"), ledger_transaction(engine):
        pass


def _move_to_another_cluster(connection: Connection) -> None:
    connection.execute(text("UPDATE outbox.unclaimed SET system_identifier = system_identifier + 1"))


def _move_to_another_database(connection: Connection) -> None:
    connection.execute(text("UPDATE outbox.unclaimed SET database_oid = 1"))


def _move_to_another_timeline(connection: Connection) -> None:
    connection.execute(text("UPDATE outbox.unclaimed SET timeline = timeline + 1"))


def _set_the_sequence_back(connection: Connection) -> None:
    connection.execute(text("SELECT setval('outbox.event_position_seq', 1)"))


def _cache_positions(connection: Connection) -> None:
    connection.execute(text("ALTER SEQUENCE outbox.event_position_seq CACHE 10"))


def _let_producers_choose(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE outbox.event ALTER position SET GENERATED BY DEFAULT"))


def _inherit(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE outbox.child () INHERITS (outbox.event)"))


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (_move_to_another_cluster, "another cluster"),
        (_move_to_another_database, "another cluster"),
        (_move_to_another_timeline, "another cluster"),
        (_set_the_sequence_back, "stands at 1, below position 3"),
        (_cache_positions, "CACHE 1"),
        (_let_producers_choose, "GENERATED ALWAYS"),
        (_inherit, "one plain table"),
    ],
)
def test_a_cut_stops_when_a_condition_is_broken(
    outbox_engine: Engine, break_it: Callable[[Connection], None], sentence: str
) -> None:
    """Nothing is cut from a ledger that could lose or double events; the error says what is wrong."""
    publish(outbox_engine, 3)
    cut_batches(outbox_engine, Settings(), limit=1)
    with outbox_engine.begin() as connection:
        break_it(connection)

    with pytest.raises(LedgerError, match=sentence):
        cut_batches(outbox_engine, Settings(), limit=1)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE outbox.event SET event_type = 'other'",
        "DELETE FROM outbox.event",
        "DELETE FROM outbox.event WHERE position = 2",
        "TRUNCATE outbox.event",
    ],
)
def test_events_on_their_way_cannot_be_changed_or_removed(outbox_engine: Engine, statement: str) -> None:
    """PostgreSQL itself refuses UPDATE, TRUNCATE, and DELETE of what is not processed."""
    publish(outbox_engine, 3)

    with pytest.raises(DBAPIError, match=r"insert-only|not delivered yet"), outbox_engine.begin() as connection:
        connection.execute(text(statement))


@pytest.mark.parametrize("recorded_at", ["infinity", "-infinity", "1999-01-01Z", "2500-01-01Z", "0044-03-15 BC"])
def test_a_recorded_time_outside_any_calendar_is_refused(outbox_engine: Engine, recorded_at: str) -> None:
    """A time that no partition could ever hold cannot be written."""
    statement = text(
        "INSERT INTO outbox.event (event_type, environment, event_context, recorded_at)"
        " VALUES ('t', 'test', '{}', CAST(:recorded_at AS timestamptz))"
    )

    with pytest.raises(DBAPIError, match="plain_time"), outbox_engine.begin() as connection:
        connection.execute(statement, {"recorded_at": recorded_at})


def test_a_cut_gives_up_on_a_lock_it_does_not_get(outbox_engine: Engine) -> None:
    """An idle transaction holding the ledger's lock makes a cut fail soon and clearly, not hang."""
    with outbox_engine.begin() as idle:
        idle.execute(text("SELECT * FROM outbox.unclaimed FOR UPDATE"))

        with pytest.raises(TransientError, match="lock timeout"):
            cut_batches(outbox_engine, Settings(lock_timeout_seconds=0.2), limit=1)


def test_what_the_ledger_repeats_is_prepared(outbox_engine: Engine) -> None:
    """Over a connection of PostgreSQL's own the statements of a tick are planned once, not each time."""
    for _ in range(PREPARE_THRESHOLD + 1):
        with ledger_transaction(outbox_engine) as connection:
            connection.execute(text("SELECT 'repeated'"))
    with ledger_transaction(outbox_engine) as connection:
        prepared = connection.scalars(text("SELECT statement FROM pg_prepared_statements")).all()

    assert "SELECT 'repeated'" in prepared


def test_a_limit_that_ends_even_what_sets_ours_is_named(outbox_engine: Engine) -> None:
    """A role's statement_timeout counts until ours is set; when it is too short for that, the sentence says so."""
    more_than_a_millisecond = json.dumps({f"outbox.setting_{nth}": "on" for nth in range(20_000)})

    with outbox_engine.connect() as connection:
        connection.exec_driver_sql("SET LOCAL statement_timeout = '1ms'")
        with pytest.raises(TransientError, match="RESET statement_timeout"):
            begin_session(connection, more_than_a_millisecond)
