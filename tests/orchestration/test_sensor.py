"""The sensor asks for one run a due batch, and for none while ClickHouse is away."""

import socket
from datetime import timedelta

import dagster as dg
import pytest
from sqlalchemy import text

from outbox_pipeline.errors import ConfigurationError, TransientError
from outbox_pipeline.orchestration.delivery.outbox_sensor import outbox_sensor
from outbox_pipeline.orchestration.partitions import days_of, deliverable_days
from outbox_pipeline.orchestration.shared_settings import settings_tag
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.settings import today
from outbox_pipeline.stores import Stores
from tests.fixtures.clock import shift
from tests.fixtures.events import publish
from tests.fixtures.sensors import NOWHERE, pipeline, tick
from tests.fixtures.snapshots import delivered_batches


def test_a_pending_event_becomes_one_run_request(
    instance: dg.DagsterInstance, stores: Stores, definitions: dg.Definitions
) -> None:
    """The request names batch and attempt in run key, tags and config, and today's partition."""
    publish(stores.engine, 3)

    result = tick(instance, pipeline(stores))

    (request,) = result.run_requests or []
    config = request.run_config["ops"]["event_log"]["config"]
    assert request.run_key == f"{config['batch_id']}:1"
    assert request.tags == {
        "outbox/batch_id": config["batch_id"],
        "outbox/attempt": "1",
        "dagster/priority": "1",
        **settings_tag(pipeline(stores).settings),
    }
    assert request.partition_key is not None
    assert deliverable_days()[0].isoformat() <= request.partition_key <= deliverable_days()[1].isoformat()
    assert dg.validate_run_config(definitions.resolve_job_def("deliver_batch"), request.run_config)


@pytest.mark.parametrize(("days", "end"), [(400, 1), (-4000, 0), (2, 1)])
def test_a_batch_of_another_day_is_requested_under_the_nearest(
    instance: dg.DagsterInstance, stores: Stores, days: int, end: int
) -> None:
    """A day that is no partition yet, or no more, holds no batch up; the run's tags say which day it is."""
    publish(stores.engine, 3)
    cut_batches(stores.engine, stores.settings, limit=1)
    shift(stores.engine, days=days)

    (request,) = tick(instance, pipeline(stores)).run_requests or []
    with stores.engine.begin() as connection:
        day = connection.scalar(text("SELECT recorded_on FROM outbox.batch"))

    assert request.partition_key == deliverable_days()[end].isoformat()
    assert request.tags["outbox/recorded_on"] == str(day) == str(today() + timedelta(days=days))


@pytest.mark.parametrize(("first", "days"), [(0, -3), (400, 0)])
def test_the_ledgers_first_day_holds_no_batch_up(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch, first: int, days: int
) -> None:
    """A batch from before it is requested under the first partition, which is today where that day is to come."""
    publish(stores.engine, 3)
    cut_batches(stores.engine, stores.settings, limit=1)
    shift(stores.engine, days=days)
    monkeypatch.setenv("OUTBOX_FIRST_DAY", str(today() + timedelta(days=first)))

    (request,) = tick(instance, pipeline(stores)).run_requests or []

    assert request.partition_key == str(today()) == str(deliverable_days()[0])
    assert request.tags.get("outbox/recorded_on") == (str(today() + timedelta(days=days)) if days else None)
    assert days_of(today()).first_day < today()


def test_a_first_day_in_the_future_is_told(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any partition there is nothing to start runs under: the tick says so and what to set."""
    publish(stores.engine, 3)
    monkeypatch.setenv("OUTBOX_START_DATE", str(today() + timedelta(days=30)))

    result = tick(instance, pipeline(stores))

    assert not result.run_requests
    assert "held back, because OUTBOX_START_DATE is in the future" in str(result.skip_reason)


def test_a_tick_evaluated_twice_asks_once(instance: dg.DagsterInstance, stores: Stores) -> None:
    """What was requested is not requested again; the skip reason says what is in flight."""
    publish(stores.engine, 3)
    tick(instance, pipeline(stores))

    second = tick(instance, pipeline(stores))

    assert not second.run_requests
    assert "1 batch in flight" in str(second.skip_reason)


def test_no_run_starts_while_clickhouse_is_away(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The tick says since when, keeps saying it, cuts nothing, and forgets it when ClickHouse is back."""
    publish(stores.engine, 3)
    away = pipeline(stores, clickhouse_url=f"http://user:secret@{NOWHERE}")

    first = tick(instance, away)
    later = tick(instance, away, cursor=first.cursor)
    back = tick(instance, pipeline(stores), cursor=later.cursor)

    assert not first.run_requests
    assert first.cursor == later.cursor
    assert str(first.cursor).startswith("ClickHouse does not answer since 20")
    assert str(first.cursor).removeprefix("ClickHouse does not answer ") in str(later.skip_reason)
    assert back.cursor == "ClickHouse answers"
    assert "secret" not in str(first.skip_reason)
    assert len(back.run_requests or []) == 1


def test_a_tick_without_postgres_fails_in_one_sentence(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The tick's error names the server and what to check, never the password."""
    away = pipeline(stores, postgres_url=f"postgresql+psycopg://user:secret@{NOWHERE}/outbox")

    with pytest.raises(TransientError, match="cannot be reached") as raised:
        tick(instance, away)

    assert "secret" not in str(raised.value)


def test_backpressure_stops_cutting(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With enough batches in flight events stay pending; nothing is lost by it."""
    monkeypatch.setenv("OUTBOX_BATCH_MAX_EVENTS", "1")
    monkeypatch.setenv("OUTBOX_MAX_OPEN_BATCHES", "2")
    publish(stores.engine, 5)

    requested = [len(tick(instance, pipeline(stores)).run_requests or []) for _ in range(3)]

    assert requested == [2, 0, 0]


def test_sensor_is_due_at_each_look_of_the_daemon() -> None:
    """Dagster looks every 5 s and skips a sensor whose last tick is a hair younger than its interval."""
    assert outbox_sensor.minimum_interval_seconds is not None
    assert outbox_sensor.minimum_interval_seconds < 5


def test_a_clickhouse_that_hangs_is_away_too(instance: dg.DagsterInstance, stores: Stores) -> None:
    """A server that takes the connection and says nothing is skipped like one that refuses it."""
    publish(stores.engine, 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        result = tick(instance, pipeline(stores, clickhouse_url=f"http://127.0.0.1:{port}"))

    assert not result.run_requests
    assert "No runs while ClickHouse is away" in str(result.skip_reason)


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("DROP TABLE {table:Identifier}", "'outbox init --recreate-log'"),
        ("DROP TABLE {fence:Identifier}", "run 'outbox init'"),
        ("DROP TABLE {sources:Identifier}", "run 'outbox init'"),
        ("INSERT INTO {migrations:Identifier} (version) VALUES ('9999')", "newer than this code"),
    ],
)
def test_a_log_that_cannot_be_delivered_into_stops_the_tick(
    instance: dg.DagsterInstance, stores: Stores, statement: str, sentence: str
) -> None:
    """Nothing is cut and no attempt is drawn on it, so no batch is parked; the tick says what to do."""
    delivered_batches(stores, (2,))
    publish(stores.engine, 3)
    cut_batches(stores.engine, stores.settings, limit=1)
    publish(stores.engine, 1)
    stores.client.run(statement)
    batches = text("SELECT batch_id, status, attempt, failures FROM outbox.batch ORDER BY batch_id")
    with stores.engine.begin() as connection:
        before = connection.execute(batches).all()

    for _ in range(3):
        with pytest.raises(ConfigurationError, match=sentence):
            tick(instance, pipeline(stores))

    with stores.engine.begin() as connection:
        assert connection.execute(batches).all() == before
