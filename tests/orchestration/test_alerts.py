"""Alerts from the sensor: what opens an incident, what does not, and that each is told once."""

import json
from datetime import UTC, datetime
from uuid import UUID

import dagster as dg
import pytest
from sqlalchemy import text

from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.monitoring.incidents import Incidents
from outbox_pipeline.orchestration.alerts import Look, alert_sensor, watch_checks
from outbox_pipeline.orchestration.assets import EVENT_LOG, OUTBOX_KEY
from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import resume_parked
from outbox_pipeline.relay.attempts import end_failed, start_unrequested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import load_settings, today
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import BREAKAGES
from tests.fixtures.events import publish
from tests.fixtures.held import hold
from tests.fixtures.ledger import execute
from tests.fixtures.moves import move_by_hand
from tests.fixtures.sensors import NOWHERE, pipeline, tick_health
from tests.fixtures.snapshots import delivered_batches
from tests.fixtures.webhook import Receiver


class Watched:
    """The sensor ticking on one instance, its cursor kept as the daemon keeps it."""

    def __init__(self, instance: dg.DagsterInstance, stores: Stores) -> None:
        self.instance, self.stores = instance, stores
        self.cursor: str | None = None

    def tick(self, *, postgres_url: str | None = None) -> str:
        """Evaluate once; return the skip reason."""
        resources = {"pipeline": pipeline(self.stores, postgres_url=postgres_url)}
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources=resources, definitions=build_definitions()
        ) as context:
            result = alert_sensor(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor or self.cursor
        return str(result.skip_reason)


@pytest.fixture
def watched(instance: dg.DagsterInstance, stores: Stores, receiver: Receiver) -> Watched:
    """The sensor after its first tick on a quiet outbox; the instance is shared with other tests."""
    tick_health(instance, stores)
    watched = Watched(instance, stores)
    watched.tick()
    receiver.notices.clear()
    return watched


def fail_a_batch(stores: Stores) -> UUID:
    """Let the delivery of a new batch fail; it is due again after its backoff."""
    publish(stores.engine, 2)
    cut_batches(stores.engine, stores.settings, limit=1)
    with stores.engine.begin() as connection:
        batch_id: UUID = connection.execute(text("SELECT batch_id FROM outbox.batch WHERE status = 'cut'")).scalar_one()
    delivery = start_unrequested(stores, batch_id)
    end_failed(delivery, ConfigurationError("The table is gone."))
    return batch_id


def run_job(watched: Watched, job: str, *, tags: dict[str, str] | None = None, **config: object) -> None:
    """Run a job in this process, as a person would start it."""
    definition = build_definitions().resolve_job_def(job)
    (op,) = definition.graph.node_dict
    run_config = {"ops": {op: {"config": config}}}
    definition.execute_in_process(instance=watched.instance, run_config=run_config, tags=tags, raise_on_error=False)


def run_day(watched: Watched, *, tags: dict[str, str] | None = None, **config: object) -> None:
    """Prove today, or deliver one batch, as a run of the backfill page or the launchpad does."""
    definition = build_definitions().resolve_job_def("deliver_batch")
    definition.execute_in_process(
        instance=watched.instance,
        partition_key=today().isoformat(),
        run_config={"ops": {"event_log": {"config": config}}},
        tags=tags,
        raise_on_error=False,
    )


def test_without_a_url_nothing_is_sent(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tick says which setting is missing, and remembers nothing."""
    monkeypatch.delenv("OUTBOX_ALERT_WEBHOOK_URL", raising=False)
    watched = Watched(instance, stores)

    assert "OUTBOX_ALERT_WEBHOOK_URL is not set" in watched.tick()
    assert watched.cursor is None


def test_a_parked_batch_is_one_alert_and_one_recovery(watched: Watched, receiver: Receiver) -> None:
    """While a retry is coming nothing is sent; parked, once; delivered, once."""
    fail_a_batch(watched.stores)
    watched.tick()
    tick_health(watched.instance, watched.stores)
    while_retrying = list(receiver.notices)
    move_by_hand(watched.stores.engine, "UPDATE outbox.batch SET status = 'parked'")
    for _ in range(3):
        tick_health(watched.instance, watched.stores)
        watched.tick()
    while_parked = receiver.told("parked")
    with ledger_transaction(watched.stores.engine) as connection:
        resume_parked(connection)
    relay(watched.stores, until_empty=True)
    for _ in range(2):
        watched.tick()

    assert while_retrying == []
    assert while_parked == ["firing"]
    assert receiver.told("parked") == ["firing", "resolved"]
    assert {notice["incident"] for notice in receiver.notices} == {"parked"}
    assert receiver.notices[0]["title"] == "1 batch is parked with 2 events."
    assert "outbox resume" in receiver.notices[0]["text"]


def test_a_lag_over_the_threshold_does_not_flap(
    watched: Watched, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens above the threshold and not before; open, it ends below half of the threshold and not before."""
    execute(
        watched.stores.engine,
        "INSERT INTO outbox.event (event_type, environment, event_context, recorded_at)"
        " VALUES ('t', 'test', '{}', clock_timestamp() - interval '1000 seconds')",
    )
    told = []
    for threshold in ("1500", "900", "1500", "900", "3000", "1500", "900"):
        monkeypatch.setenv("OUTBOX_ALERT_LAG_SECONDS", threshold)
        watched.tick()
        told.append(receiver.told("lag"))

    assert told[:4] == [[], ["firing"], ["firing"], ["firing"]]
    assert told[4:] == [["firing", "resolved"], ["firing", "resolved"], ["firing", "resolved", "firing"]]


def test_failed_checks_are_told_with_their_words(watched: Watched, receiver: Receiver) -> None:
    """Any check of the definitions counts; a warning is told as one."""
    hold(watched.stores, 2)
    tick_health(watched.instance, watched.stores)
    watched.tick()
    run_job(watched, "discard_quarantined", everything=True, note="why", dry_run=False)
    tick_health(watched.instance, watched.stores)
    watched.tick()

    incident = "check:postgres/outbox/quarantine_empty"
    assert receiver.told(incident) == ["firing", "resolved"]
    assert receiver.notices[0]["severity"] == "warning"
    assert "requeue_quarantined" in receiver.notices[0]["detail"]


@pytest.mark.parametrize(
    ("name", "days"),
    [
        ("of_days", ("2026-02-01", "2026-02-02")),
        ("of_all", (None, None)),
        # As *Execute all* reports it: it repeats its days', which later results replace.
        ("of_both", (None, "2026-02-01")),
    ],
)
def test_a_failed_day_is_not_hidden_by_another(
    instance: dg.DagsterInstance, stores: Stores, name: str, days: tuple[str | None, str | None]
) -> None:
    """Of a check with partitions the latest result of each counts; of one without, the latest."""
    for passed, day in zip((False, True), days, strict=True):
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(asset_key=EVENT_LOG, check_name=name, passed=passed, partition=day)
        )
    keys = (dg.AssetCheckKey(EVENT_LOG, name),)

    found = watch_checks(Look(datetime.now(UTC), stores.settings, None, Incidents(), {}, instance, keys))

    titles = [condition.title for condition in found]
    assert titles == (["Check of_days of event_log failed for 2026-02-01."] if days[0] else [])


def test_a_failed_run_is_told_and_its_success_too(watched: Watched, receiver: Receiver) -> None:
    """A job that nothing repeats: one alert however often it fails, one recovery."""
    for _ in range(2):
        run_job(watched, "requeue_quarantined", event_type="nothing", dry_run=False)
        watched.tick()
    hold(watched.stores)
    run_job(watched, "requeue_quarantined", everything=True, dry_run=True)
    watched.tick()
    watched.tick()

    assert receiver.told("run:requeue_quarantined") == ["firing", "resolved"]


def test_broken_batches_are_one_incident(watched: Watched, receiver: Receiver) -> None:
    """The check tells of them, and the failed run of the comparison is no second one."""
    batches = delivered_batches(watched.stores)
    BREAKAGES["half a batch"].do(watched.stores.client, batches[1].batch_id)
    day = {"first_day": str(today()), "last_day": str(today())}
    run_job(watched, "reconcile_days", **day)
    watched.tick()
    opened = [(notice["incident"], notice["status"]) for notice in receiver.notices]
    run_job(watched, "reconcile_days", **day, repair=True)
    watched.tick()

    assert opened == [("check:event_log/reconciled", "firing")]
    assert receiver.told("check:event_log/reconciled") == ["firing", "resolved"]
    assert receiver.told("run:reconcile_days") == []


def test_a_clickhouse_that_is_away_for_a_minute_is_told(watched: Watched, receiver: Receiver) -> None:
    """A restart is not; what is parked is told once, by its own incident."""
    told = []
    for severity in (dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR):
        watched.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=OUTBOX_KEY, check_name="clickhouse_answers", passed=False, severity=severity
            )
        )
        watched.tick()
        told.append(receiver.told("check:postgres/outbox/clickhouse_answers"))
    tick_health(watched.instance, watched.stores)
    watched.tick()

    assert told == [[], ["firing"]]
    assert receiver.told("check:postgres/outbox/clickhouse_answers") == ["firing", "resolved"]


def test_a_failed_run_of_a_batch_is_the_ledgers_matter(watched: Watched, receiver: Receiver) -> None:
    """With or without the sensor's tags: the batch is tried again, so the run is no incident."""
    batch_id = str(fail_a_batch(watched.stores))
    watched.stores.client.run("RENAME TABLE {table:Identifier} TO hidden")
    run_day(watched, batch_id=batch_id)
    run_day(watched, batch_id=batch_id, tags={"outbox/batch_id": batch_id, "outbox/attempt": "9"})

    watched.tick()

    failed = watched.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    assert len(failed) >= 2
    assert receiver.notices == []


def test_a_backfill_is_one_incident(watched: Watched, receiver: Receiver) -> None:
    """However many days of it fail; it ends when each of them has succeeded, by whichever run."""
    publish(watched.stores.engine, 1)
    relay(watched.stores, until_empty=True)
    watched.stores.client.run("RENAME TABLE {table:Identifier} TO hidden")
    run_day(watched, tags={"dagster/backfill": "abcdefgh"})
    watched.tick()
    watched.stores.client.run("RENAME TABLE hidden TO {table:Identifier}")
    run_day(watched)
    watched.tick()

    assert receiver.told("run:backfill abcdefgh") == ["firing", "resolved"]
    assert today().isoformat() in receiver.notices[0]["detail"]


def test_a_run_that_a_sensor_repeats_is_told_when_it_keeps_failing(watched: Watched, receiver: Receiver) -> None:
    """Twice is bad luck, three times in a row an incident."""
    told = []
    for _ in range(3):
        run_job(
            watched,
            "requeue_quarantined",
            event_type="nothing",
            dry_run=False,
            tags={"dagster/sensor_name": "some_sensor"},
        )
        watched.tick()
        told.append(receiver.told("run:requeue_quarantined"))

    assert told == [[], [], ["firing"]]


def test_a_webhook_that_is_away_is_tried_in_each_tick(watched: Watched, receiver: Receiver) -> None:
    """One attempt a tick, said in the tick; when it is back, everything arrives once."""
    receiver.status = 500
    fail_a_batch(watched.stores)
    move_by_hand(watched.stores.engine, "UPDATE outbox.batch SET status = 'parked'")
    reasons = [watched.tick() for _ in range(3)]
    asked_count = receiver.asked_count
    receiver.status = 200
    back = watched.tick()
    watched.tick()

    assert asked_count == 3
    assert all("status 500" in reason and "1 notices wait" in reason for reason in reasons)
    assert "Sent 1" in back
    assert receiver.told("parked") == ["firing"]


def test_a_ledger_that_is_away_hides_nothing(watched: Watched, receiver: Receiver) -> None:
    """What was open stays open; the ledger itself is told of after a minute, not at once."""
    fail_a_batch(watched.stores)
    move_by_hand(watched.stores.engine, "UPDATE outbox.batch SET status = 'parked'")
    watched.tick()
    away = f"postgresql+psycopg://user:sekret@{NOWHERE}/outbox"
    watched.tick(postgres_url=away)
    at_once = [notice["incident"] for notice in receiver.notices]
    stored = json.loads(watched.cursor or "")
    stored["memory"]["away_since"] = "2026-01-01T00:00:00+00:00"
    watched.cursor = json.dumps(stored)
    later = watched.tick(postgres_url=away)
    watched.tick()

    assert at_once == ["parked"]
    assert receiver.told("parked") == ["firing"]
    assert receiver.told("ledger") == ["firing", "resolved"]
    assert "sekret" not in json.dumps(receiver.notices) + later


def test_nothing_secret_is_shown_or_sent(watched: Watched, receiver: Receiver) -> None:
    """Neither cursor nor skip reason nor the message has a URL, an error's text or an event's content."""
    receiver.status = 404
    publish(watched.stores.engine, 1, context='{"key": "sekret"}')
    fail_a_batch(watched.stores)
    move_by_hand(watched.stores.engine, "UPDATE outbox.batch SET status = 'parked', last_error = 'it said sekret'")
    reason = watched.tick()
    receiver.status = 200
    watched.tick()

    assert receiver.told("parked") == ["firing"]
    assert "sekret" not in reason + str(watched.cursor) + json.dumps(receiver.notices)
    assert "sekret" not in repr(load_settings())
