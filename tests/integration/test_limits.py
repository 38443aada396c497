"""What a producer can write has limits, so that nobody fills another one's batch, memory or screen."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from outbox_pipeline import PublishError, publish_event, publish_events
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.migrations.files import file_names, script
from outbox_pipeline.postgres.schema import latest_version, migrate
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.costs import peaks_of_relay
from tests.fixtures.events import assert_each_exactly_once, committed_ids, publish, publish_unlimited
from tests.fixtures.servers import Servers
from tests.fixtures.stores import fresh_database, url_of

_LIMITS = {"event_type": 500, "environment": 200, "trace_context": 8_192}

_INSERT = (
    "INSERT INTO outbox.event (event_type, environment, event_context, trace_context)"
    " VALUES (:event_type, :environment, '{}', :trace_context)"
)
_PUBLISH = (
    "SELECT outbox.publish(event_type => :event_type, environment => :environment, event_context => '{}',"
    " trace_context => :trace_context)"
)

_needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")


@pytest.fixture
def before_limits(servers: Servers) -> Iterator[Engine]:
    """A database whose schema is the one before names had limits."""
    with fresh_database(servers) as name:
        engine = create_engine(url_of(servers, name))
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA outbox")
            connection.exec_driver_sql("CREATE TABLE outbox.schema_version (version_num varchar(32) PRIMARY KEY)")
            connection.exec_driver_sql("INSERT INTO outbox.schema_version VALUES ('0006')")
            for file in file_names():
                if file < "0007":
                    connection.connection.cursor().execute(script(file))
        yield engine
        engine.dispose()


def names(**given: str) -> dict[str, str | None]:
    """Return the texts of an event, the given ones and short ones."""
    return {"event_type": "t", "environment": "test", "trace_context": None, **given}


def held(engine: Engine) -> dict[str, list[str]]:
    """Return the reasons against each event in quarantine, by its id."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT event_id, reasons FROM outbox.quarantined_event"))
        return {str(row.event_id): row.reasons for row in rows}


@pytest.mark.parametrize("statement", [_INSERT, _PUBLISH])
@pytest.mark.parametrize(("name", "most"), _LIMITS.items())
def test_longer_names_are_refused_in_sql(
    login: Callable[..., Engine], outbox_engine: Engine, name: str, most: int, statement: str
) -> None:
    """One byte more than the limit is refused, whoever writes and in whatever language; the error says the limit."""
    producer = login("outbox_producer")
    with producer.begin() as connection:
        connection.execute(text(statement), names(**{name: "x" * most}))

    with producer.connect() as connection, pytest.raises(IntegrityError, match=f"{name}_has_at_most_{most}_bytes"):
        connection.execute(text(statement), names(**{name: "x" * (most - 1) + "ä"}))

    assert len(committed_ids(outbox_engine)) == 1


@pytest.mark.parametrize(("name", "most"), _LIMITS.items())
def test_longer_names_are_refused_in_python_before_any_statement(outbox_engine: Engine, name: str, most: int) -> None:
    """The transaction can go on, and best effort goes on without the event."""
    given = {"event_type": "t", name: "ä" * most}
    with Session(outbox_engine) as session, session.begin():
        for publishing in (publish_event, publish_events):
            with pytest.raises(PublishError, match=f"{name}: has .* more than the {most:,} it may have"):
                publishing(session, {} if publishing is publish_event else [{}], **given)  # type: ignore[operator]
        assert publish_event(session, {}, required=False, **given) is None  # type: ignore[call-overload]
        event_id = publish_event(session, {}, event_type="t")

    assert committed_ids(outbox_engine) == {event_id}


def test_events_from_before_are_held(stores: Stores) -> None:
    """What was written before there were limits waits in quarantine with its reason; the others arrive."""
    long = publish_unlimited(stores.engine, event_type="repeat('x', 501)")
    long += publish_unlimited(stores.engine, environment="repeat('ä', 101)")
    long += publish_unlimited(stores.engine, trace_context="repeat('x', 8193)")
    publish(stores.engine, 3)

    result = relay(stores, until_empty=True)

    assert (result.delivered_count, result.failures) == (3, ())
    assert held(stores.engine) == {str(event_id): ["name_too_long"] for event_id in long}
    assert_each_exactly_once(stores.engine, stores.client)


@pytest.mark.parametrize("column", ["event_type", "environment", "trace_context"])
def test_names_count_for_the_size_of_a_batch(outbox_engine: Engine, column: str) -> None:
    """A batch takes as many bytes as it may, wherever in the events they are."""
    publish_unlimited(outbox_engine, 10, **{column: "repeat('x', 10000)"})

    result = cut_batches(outbox_engine, Settings(batch_max_bytes=25_000), limit=10)

    assert [batch.event_count for batch in result.batches] == [2, 2, 2, 2, 2]


def test_short_names_count_for_nothing(outbox_engine: Engine) -> None:
    """Up to 200 bytes of names and trace beside it, an event is as large as its context."""
    publish_unlimited(outbox_engine, 10, event_type="repeat('x', 145)", trace_context="repeat('x', 51)")

    result = cut_batches(outbox_engine, Settings(batch_max_bytes=20), limit=10)

    assert [batch.event_count for batch in result.batches] == [10]


@_needs_proc
def test_traces_do_not_fill_the_memory(stores: Stores) -> None:
    """2,000 events with 200 MB of traces and next to no context are delivered within the memory of small batches."""
    settings = stores.settings.model_copy(update={"batch_max_bytes": 10_000_000, "lease_seconds": 600})
    publish_unlimited(stores.engine, 2_000, trace_context="repeat('x', 100000)")

    before, *peaks = peaks_of_relay(settings)

    # Three batches of 10 MB under way at once, each there a few times over; 40 MB are libraries loaded when used.
    assert len(peaks) >= 20
    assert peaks[-1] - before < 160_000_000
    assert len(held(stores.engine)) == 2_000


def test_the_migration_neither_rewrites_nor_reads_the_events(before_limits: Engine) -> None:
    """A table of any size gets its limits at once; what is in it stays, and what comes is held against them."""
    long = "INSERT INTO outbox.event (event_type, environment, event_context) VALUES (repeat('x', 501), 't', '{}')"
    shape = text(
        "SELECT pg_relation_filenode('outbox.event'), (SELECT count(*) FROM outbox.event),"
        " (SELECT count(*) FROM pg_constraint WHERE conrelid = 'outbox.event'::regclass"
        "  AND conname LIKE '%has_at_most%' AND NOT convalidated)"
    )
    with before_limits.begin() as connection:
        connection.exec_driver_sql(long)
        filenode, count, limits = connection.execute(shape).one()
    assert (count, limits) == (1, 0)

    assert migrate(before_limits) == latest_version()

    with before_limits.connect() as connection:
        assert tuple(connection.execute(shape).one()) == (filenode, 1, 3)
        assert connection.scalar(text("SELECT published_by FROM outbox.event")) is None
        with pytest.raises(IntegrityError):
            connection.exec_driver_sql(long)


@pytest.mark.parametrize("names", ["repeat('€', 180), 'test'", "'t', repeat('e', 201)"])
def test_the_migration_names_a_table_captured_under_a_longer_name(before_limits: Engine, names: str) -> None:
    """Its application's writes would be refused from then on, so the migration is, until that is mended."""
    with before_limits.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE fits (id int)")
        connection.exec_driver_sql("SELECT outbox.capture('fits', repeat('ä', 180), repeat('e', 200))")
        connection.exec_driver_sql("CREATE TABLE orders (id int)")
        connection.exec_driver_sql(f"SELECT outbox.capture('orders', {names})")

    with pytest.raises(ConfigurationError, match=r"Table public\.orders is captured with .* call outbox\.capture"):
        migrate(before_limits)

    with before_limits.begin() as connection:
        connection.exec_driver_sql("SELECT outbox.capture('orders')")
    assert migrate(before_limits) == latest_version()
