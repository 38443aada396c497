"""health_sensor and its checks on a real instance: what is news, what plots, and a heartbeat that is missed."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.definitions.freshness import FreshnessState
from dagster._core.definitions.freshness_evaluator import TimeWindowFreshnessPolicyEvaluator
from dagster._core.loader import LoadingContextForTest
from sqlalchemy import text

from outbox_pipeline.errors import TransientError
from outbox_pipeline.orchestration import health
from outbox_pipeline.orchestration.assets import OUTBOX_KEY
from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.orchestration.health import (
    AUTOMATION_IS_ON,
    CLICKHOUSE_ANSWERS,
    LAG_BELOW_THRESHOLD,
    LEDGER_CONSISTENT,
    NO_OLD_GAP,
    NOTHING_PARKED,
    OUTBOX,
)
from outbox_pipeline.orchestration.quarantine import QUARANTINE_EMPTY
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import resume_parked
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import fail_batch
from tests.fixtures.events import publish, publish_in
from tests.fixtures.sensors import NOWHERE, evaluate_health, latest_check, pipeline, switched_off, tick_health

ALL = [
    *(LAG_BELOW_THRESHOLD, NO_OLD_GAP, LEDGER_CONSISTENT, NOTHING_PARKED),
    *(CLICKHOUSE_ANSWERS, AUTOMATION_IS_ON, QUARANTINE_EMPTY),
]


@pytest.fixture(autouse=True)
def same_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test begins in one report's ten minutes and ends in the next one's."""
    monkeypatch.setattr(health, "_REPORTED_EVERY_SECONDS", 1_000_000_000)


def reported(result: dg.SensorResult) -> list[str]:
    """Return the checks that a tick reported."""
    return [event.check_name for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)]


def in_next_slot(cursor: str | None) -> str:
    """Return the cursor as it is once ten minutes have gone by."""
    return json.dumps({**json.loads(cursor or ""), "slot": 0})


def test_every_check_is_reported_at_first_and_green(instance: dg.DagsterInstance, stores: Stores) -> None:
    """On an empty outbox the first tick makes all checks green and asks for no run."""
    result = tick_health(instance, stores)

    assert reported(result) == ALL
    assert not result.run_requests
    checks = [latest_check(instance, name) for name in ALL]
    assert [check is not None and check.passed for check in checks] == [True] * len(ALL)


def test_a_check_is_reported_when_it_changes(instance: dg.DagsterInstance, stores: Stores) -> None:
    """A tick that finds what was reported already adds no event; the next ten minutes do."""
    first = tick_health(instance, stores)

    again = tick_health(instance, stores, first.cursor)
    later = tick_health(instance, stores, in_next_slot(first.cursor))

    assert [len(reported(result)) for result in (first, again, later)] == [len(ALL), 0, len(ALL)]
    assert not again.asset_events
    assert "all is well" in str(again.skip_reason)


def test_only_the_check_that_changed_is_news(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lag above OUTBOX_ALERT_LAG_SECONDS turns its check red at once, and green when it is delivered."""
    monkeypatch.setenv("OUTBOX_ALERT_LAG_SECONDS", "0.001")
    first = tick_health(instance, stores)
    publish(stores.engine, 3)
    late = tick_health(instance, stores, first.cursor)
    red = latest_check(instance, LAG_BELOW_THRESHOLD)
    later = tick_health(instance, stores, late.cursor)
    relay(stores, until_empty=True)
    over = tick_health(instance, stores, later.cursor)
    green = latest_check(instance, LAG_BELOW_THRESHOLD)

    assert [reported(result) for result in (late, later, over)] == [[LAG_BELOW_THRESHOLD], [], [LAG_BELOW_THRESHOLD]]
    assert "3 pending" in str(later.skip_reason)
    assert red is not None
    assert (red.passed, red.severity, red.blocking) == (False, dg.AssetCheckSeverity.ERROR, False)
    assert "outbox_sensor" in (red.description or "")
    assert red.metadata["pending"].value == 3
    assert green is not None
    assert green.passed


def test_an_old_gap_names_its_session(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is yellow while an open transaction holds events back, and shows its pid."""
    monkeypatch.setenv("OUTBOX_ALERT_LAG_SECONDS", "0.001")
    with stores.engine.connect() as slow, slow.begin():
        publish_in(slow, 1)
        pid = slow.scalar(text("SELECT pg_backend_pid()"))
        publish(stores.engine, 1)
        cut_batches(stores.engine, stores.settings, limit=1)
        tick_health(instance, stores)

    check = latest_check(instance, NO_OLD_GAP)
    assert check is not None
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert f"pid {pid}" in (check.description or "")
    assert f"pid {pid}" in str(check.metadata["found"].value)


@pytest.mark.parametrize("name", ALL)
def test_each_check_can_be_executed_by_hand(instance: dg.DagsterInstance, stores: Stores, name: str) -> None:
    """The Execute button of a check gives an answer of the same form as the sensor."""
    tick_health(instance, stores)
    reported_one = latest_check(instance, name)
    job = build_definitions().resolve_implicit_global_asset_job_def()
    chosen = job.get_subset(asset_selection=set(), asset_check_selection={dg.AssetCheckKey(OUTBOX_KEY, name)})

    (check,) = chosen.execute_in_process(instance=instance).get_asset_check_evaluations()

    assert reported_one is not None
    assert (check.check_name, check.passed, check.description) == (name, True, reported_one.description)


def test_a_parked_batch_turns_its_check_red_at_once(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The next tick says how many wait for a person and why, long before the lag does; resumed, it is green again."""
    first = tick_health(instance, stores)
    publish(stores.engine, 2)
    fail_batch(stores, "poison", max_attempts=1)
    parked = tick_health(instance, stores, first.cursor)
    red = latest_check(instance, NOTHING_PARKED)
    with ledger_transaction(stores.engine) as connection:
        resume_parked(connection)
    over = tick_health(instance, stores, parked.cursor)
    green = latest_check(instance, NOTHING_PARKED)

    assert [reported(result) for result in (parked, over)] == [[NOTHING_PARKED]] * 2
    assert red is not None
    assert (red.passed, red.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "1 batch is parked with 2 events" in str(red.description)
    assert "poison" in str(red.description)
    assert green is not None
    assert green.passed


def test_a_clickhouse_that_is_away_turns_its_check_yellow_and_then_red(
    instance: dg.DagsterInstance, stores: Stores
) -> None:
    """Since when is kept from tick to tick; a restart is a warning, a minute is an error, and it ends by itself."""
    away = pipeline(stores, clickhouse_url=f"http://user:secret@{NOWHERE}")
    first = evaluate_health(instance, away)
    yellow = latest_check(instance, CLICKHOUSE_ANSWERS)
    same = evaluate_health(instance, away, first.cursor)
    since = datetime.now(UTC) - timedelta(seconds=61)
    long_ago = json.dumps({**json.loads(str(same.cursor)), "clickhouse_away_since": since.isoformat()})
    later = evaluate_health(instance, away, long_ago)
    red = latest_check(instance, CLICKHOUSE_ANSWERS)
    back = tick_health(instance, stores, later.cursor)
    green = latest_check(instance, CLICKHOUSE_ANSWERS)

    assert [reported(result) for result in (same, later, back)] == [[], [CLICKHOUSE_ANSWERS], [CLICKHOUSE_ANSWERS]]
    assert yellow is not None
    assert (yellow.passed, yellow.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert red is not None
    assert (red.passed, red.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert f"ClickHouse does not answer since {since:%Y-%m-%d %H:%M:%S} UTC" in str(red.description)
    assert str(red.description).count("does not answer") == 1
    assert "secret" not in str(red.description)
    assert green is not None
    assert green.passed


def test_a_log_that_is_gone_is_told_with_what_to_do(instance: dg.DagsterInstance, stores: Stores) -> None:
    """ClickHouse answers, and nothing can be delivered into it."""
    first = tick_health(instance, stores)
    stores.client.run("DROP TABLE {fence:Identifier}")

    tick_health(instance, stores, first.cursor)

    check = latest_check(instance, CLICKHOUSE_ANSWERS)
    assert check is not None
    assert not check.passed
    assert "Nothing can be delivered into ClickHouse" in str(check.description)
    assert "outbox init" in str(check.description)


@pytest.mark.parametrize(("name", "severity"), [("outbox_sensor", "ERROR"), ("completeness_sensor", "WARN")])
def test_a_sensor_that_is_switched_off_is_told(
    instance: dg.DagsterInstance, stores: Stores, name: str, severity: str
) -> None:
    """Red when nothing is delivered meanwhile, else yellow; of other code locations nothing is said."""
    first = tick_health(instance, stores)
    with switched_off(instance, name), switched_off(instance, "prune_hourly", location="another"):
        off = tick_health(instance, stores, first.cursor)
        check = latest_check(instance, AUTOMATION_IS_ON)
    on = tick_health(instance, stores, off.cursor)

    assert [reported(result) for result in (off, on)] == [[AUTOMATION_IS_ON]] * 2
    assert check is not None
    assert (check.passed, check.severity.value) == (False, severity)
    assert f"Switched off: {name}." in str(check.description)
    assert ("Nothing is delivered meanwhile" in str(check.description)) == (severity == "ERROR")


def test_an_alert_sensor_without_a_webhook_may_be_off(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nothing to do then; with one it is missed."""
    with switched_off(instance, "alert_sensor"):
        without = tick_health(instance, stores)
        monkeypatch.setenv("OUTBOX_ALERT_WEBHOOK_URL", "http://127.0.0.1:9/hook")
        with_one = tick_health(instance, stores, without.cursor)

    assert reported(with_one) == [AUTOMATION_IS_ON]


def test_a_broken_ledger_is_an_error(instance: dg.DagsterInstance, stores: Stores) -> None:
    """What no delivery can be trusted with is red, with one line for each broken rule."""
    with stores.engine.begin() as connection:
        connection.execute(text("ALTER TABLE outbox.event DISABLE TRIGGER event_is_never_updated"))
    tick_health(instance, stores)

    check = latest_check(instance, LEDGER_CONSISTENT)
    assert check is not None
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "ENABLE TRIGGER" in (check.description or "")


def test_the_outbox_shows_numbers_that_plot(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The upstream asset is observed with what waits and for how long."""
    publish(stores.engine, 4)
    publish(stores.engine, 1, context="[]")
    relay(stores, until_empty=True)
    publish(stores.engine, 2)
    tick_health(instance, stores)

    (record,) = instance.fetch_observations(OUTBOX_KEY, limit=1).records
    assert record.asset_observation is not None
    shown = {name: value.value for name, value in record.asset_observation.metadata.items()}
    assert (shown["pending"], shown["in_flight"], shown["quarantined"], shown["undelivered"]) == (2, 0, 1, 2)
    assert isinstance(shown["lag_seconds"], float)


def test_checks_are_reported_after_the_heartbeat(instance: dg.DagsterInstance, stores: Stores) -> None:
    """Dagster shows a check as not evaluated once its asset is materialized again, so every check comes after that."""
    kinds = [type(event) for event in tick_health(instance, stores).asset_events]

    assert kinds.count(dg.AssetMaterialization) == 1
    assert kinds.index(dg.AssetMaterialization) < kinds.index(dg.AssetCheckEvaluation)
    assert kinds.count(dg.AssetCheckEvaluation) == len(ALL)


def test_one_changed_check_does_not_outdate_the_others(instance: dg.DagsterInstance, stores: Stores) -> None:
    """Between two full reports a change is reported alone, without a heartbeat."""
    first = tick_health(instance, stores)
    publish(stores.engine, 1, context="[]")
    relay(stores, until_empty=True)

    second = tick_health(instance, stores, first.cursor)

    assert reported(second) == [QUARANTINE_EMPTY]
    assert not [event for event in second.asset_events if isinstance(event, dg.AssetMaterialization)]


def forget_outbox(instance: dg.DagsterInstance) -> None:
    """Start without the events of other tests, which share Dagster's storage."""
    instance.wipe_assets([OUTBOX_KEY])


def freshness(instance: dg.DagsterInstance) -> FreshnessState:
    """Ask the evaluator that Dagster's freshness daemon uses."""

    node = SimpleNamespace(key=OUTBOX_KEY, freshness_policy_or_from_metadata=OUTBOX.freshness_policy)
    context = LoadingContextForTest(instance)
    return asyncio.run(TimeWindowFreshnessPolicyEvaluator().evaluate_freshness(context, node))  # type: ignore[arg-type]


def test_a_quiet_outbox_stays_fresh(instance: dg.DagsterInstance, stores: Stores) -> None:
    """Without a single event the outbox has its heartbeat, so silence never turns it red."""
    forget_outbox(instance)
    unknown = freshness(instance)
    tick_health(instance, stores)

    assert (unknown, freshness(instance)) == (FreshnessState.UNKNOWN, FreshnessState.PASS)


def test_a_late_outbox_has_no_heartbeat(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While something is late, or PostgreSQL cannot be asked, nothing keeps the outbox fresh."""
    forget_outbox(instance)
    monkeypatch.setenv("OUTBOX_ALERT_LAG_SECONDS", "0.001")
    publish(stores.engine, 1)
    tick_health(instance, stores)
    with pytest.raises(TransientError):
        evaluate_health(instance, pipeline(stores, postgres_url=f"postgresql+psycopg://nobody@{NOWHERE}/none"))

    assert freshness(instance) == FreshnessState.UNKNOWN
    policy = OUTBOX.freshness_policy
    assert isinstance(policy, dg.FreshnessPolicy)
    assert timedelta(minutes=20) < policy.fail_window.to_timedelta() < timedelta(hours=1)  # type: ignore[attr-defined]


def test_a_heartbeat_leaves_the_event_log_in_sync(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The outbox's materializations carry no data version, so no delivered day is shown as out of date."""
    tick_health(instance, stores)

    event = instance.get_latest_materialization_event(OUTBOX_KEY)
    assert event is not None
    assert not [tag for tag in event.tags or {} if "data_version" in tag]


def test_a_cursor_of_another_version_is_forgotten(instance: dg.DagsterInstance, stores: Stores) -> None:
    """An unreadable cursor only means that everything is reported once more."""
    known = json.loads(tick_health(instance, stores, None).cursor or "")
    for cursor in ("2965 nothing held", "[]", "", json.dumps({**known, "answers": []})):
        assert reported(tick_health(instance, stores, cursor)) == ALL
