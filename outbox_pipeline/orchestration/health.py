"""The pipeline's health in the UI: checks of the outbox, its numbers, and a heartbeat that is missed when it stops.

One sensor reports all of it without a run, since a process every few minutes for a few counts would cost more than the
delivery it watches. Each check can also be executed by hand. A check keeps its last answer for ever, so a stopped
sensor would leave it green: therefore the sensor materializes `postgres/outbox` every ten minutes while it finds
nothing late, as a heartbeat, and that asset has a freshness policy that turns red after half an hour without one.

All of this is attached to `postgres/outbox` and not to `event_log`, for two reasons in Dagster. It shows a check as not
evaluated once its asset was materialized again, as `event_log` is with every batch. And its freshness counts
materializations only (not observations) of the whole asset: `event_log` has one from each delivery of any batch, and
one that delivers nothing would start what is meant to follow new events. The outbox has none but the heartbeat, so a
quiet outbox gets it like any other and never turns red for being quiet.

Invariant: a tick with a heartbeat reports every check after it, so that none is shown as not evaluated.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from outbox_pipeline.monitoring.clickhouse_state import is_for_long, judge_clickhouse, look_at_clickhouse
from outbox_pipeline.monitoring.health import (
    Answer,
    Health,
    judge_gaps,
    judge_lag,
    judge_ledger,
    judge_parked,
    read_health,
)
from outbox_pipeline.monitoring.status import Status
from outbox_pipeline.operations import quarantine
from outbox_pipeline.orchestration.assets import GROUP, OUTBOX_KEY, OWNERS
from outbox_pipeline.orchestration.automation import judge_automation, stops_delivery, switched_off
from outbox_pipeline.orchestration.quarantine import QUARANTINE_EMPTY, of_held, told
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.shown import Metadata, table

_RUNBOOK = """
| question | answer |
|---|---|
| Is something late, parked or away, and why? | the checks of this asset; `outbox status` |
| Where is one event? | `outbox trace EVENT_ID`; view `outbox.event_status` |
| Nothing is cut? | *Automation* → `outbox_sensor`: its latest tick says why |
| This asset is overdue? | something was late for half an hour, or `health_sensor` is stopped or fails |
"""

LAG_BELOW_THRESHOLD = "lag_below_threshold"
NO_OLD_GAP = "no_old_gap"
LEDGER_CONSISTENT = "ledger_consistent"
NOTHING_PARKED = "nothing_parked"
CLICKHOUSE_ANSWERS = "clickhouse_answers"
AUTOMATION_IS_ON = "automation_is_on"

_REPORTED_EVERY_SECONDS = 600

#: Red after three heartbeats that did not come, yellow after two.
_HEARTBEAT = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(seconds=3 * _REPORTED_EVERY_SECONDS + 120),
    warn_window=timedelta(seconds=2 * _REPORTED_EVERY_SECONDS + 120),
)

OUTBOX = dg.AssetSpec(
    OUTBOX_KEY,
    description=(
        "Table outbox.event in PostgreSQL, where applications publish in their own transactions. Plots show how many "
        "events wait and for how long, as health_sensor sees it every ten minutes. Overdue means that something has "
        "been late for half an hour, or that health_sensor does not run."
    ),
    group_name=GROUP,
    kinds={"postgres", "table"},
    owners=OWNERS,
    metadata={"dagster/table_name": "outbox.event", "runbook": dg.MetadataValue.md(_RUNBOOK)},
    freshness_policy=_HEARTBEAT,
)

_ERROR, _WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


@dataclass(frozen=True)
class Report:
    """One check's answer as Dagster shows it; `cause` is what makes it news, `severity` how bad it is if not well."""

    is_well: bool
    said: str
    cause: str
    shown: Metadata
    severity: dg.AssetCheckSeverity = _ERROR


@dg.asset_check(
    asset=OUTBOX_KEY,
    name=LAG_BELOW_THRESHOLD,
    description=(
        "No committed event has been undelivered for longer than OUTBOX_ALERT_LAG_SECONDS. Red says where the late "
        "ones are (pending, in flight, parked), the last error and the next step. health_sensor keeps it fresh."
    ),
)
def lag_below_threshold(pipeline: PipelineResource) -> dg.AssetCheckResult:
    """Compare the age of the oldest undelivered event with OUTBOX_ALERT_LAG_SECONDS; reads PostgreSQL only."""
    return _result(_of_ledger(pipeline)[LAG_BELOW_THRESHOLD])


@dg.asset_check(
    asset=OUTBOX_KEY,
    name=NO_OLD_GAP,
    description=(
        "No transaction that writes into the outbox has been open for longer than OUTBOX_ALERT_LAG_SECONDS. Yellow "
        "names the session or prepared transaction whose events wait for its end; all others are delivered. "
        "health_sensor keeps it fresh."
    ),
)
def no_old_gap(pipeline: PipelineResource) -> dg.AssetCheckResult:
    """Look for sessions that keep a gap open; a warning, because only their own events wait."""
    return _result(_of_ledger(pipeline)[NO_OLD_GAP])


@dg.asset_check(
    asset=OUTBOX_KEY,
    name=LEDGER_CONSISTENT,
    description=(
        "Every position is in exactly one place, batches hold as many events as they count, and the guards on the "
        "outbox are in force. Red means that something or somebody changed the ledger: it says what, and what to do. "
        "Looks at what is open and at the last day; health_sensor keeps it fresh."
    ),
)
def ledger_consistent(pipeline: PipelineResource) -> dg.AssetCheckResult:
    """Look for broken rules of the ledger in PostgreSQL alone; whether ClickHouse agrees is another check."""
    return _result(_of_ledger(pipeline)[LEDGER_CONSISTENT])


@dg.asset_check(
    asset=OUTBOX_KEY,
    name=NOTHING_PARKED,
    description=(
        "No batch has used up its attempts. Red says how many batches and events wait for a person, and the last "
        "error: fix it, then run resume_parked_batches. health_sensor keeps it fresh."
    ),
)
def nothing_parked(pipeline: PipelineResource) -> dg.AssetCheckResult:
    """Look for batches that have used up their attempts and wait for a person; reads PostgreSQL only."""
    return _result(_of_ledger(pipeline)[NOTHING_PARKED])


@dg.asset_check(
    asset=OUTBOX_KEY,
    name=CLICKHOUSE_ANSWERS,
    description=(
        "ClickHouse answers and has the event log. Yellow, after a minute red, says since when health_sensor has seen "
        "it away and why; events wait in PostgreSQL meanwhile. health_sensor keeps it fresh."
    ),
)
def clickhouse_answers(pipeline: PipelineResource) -> dg.AssetCheckResult:
    """Ask ClickHouse as outbox_sensor does before it starts runs; since when it is away, only the sensor knows."""
    return _result(_clickhouse_report(pipeline, None))


@dg.asset_check(
    asset=OUTBOX_KEY,
    name=AUTOMATION_IS_ON,
    description=(
        "No sensor and no schedule of this code location is switched off. Red: outbox_sensor is, and nothing is "
        "delivered; yellow: another one. health_sensor keeps it fresh."
    ),
)
def automation_is_on(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> dg.AssetCheckResult:
    """Ask Dagster which sensors and schedules were stopped; health_sensor itself is told by the asset's freshness."""
    return _result(_automation_report(context.op_execution_context.instance, pipeline))


health_checks = [
    lag_below_threshold,
    nothing_parked,
    clickhouse_answers,
    automation_is_on,
    no_old_gap,
    ledger_consistent,
]


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Reports the checks of postgres/outbox (what is late, parked or held, whether ClickHouse answers, sensors and "
        "schedules are on, and the ledger is sound): at once when an answer changes, and every ten minutes otherwise; "
        "with them the outbox's numbers, as an observation. A few queries, no run. While it is stopped, "
        "postgres/outbox turns overdue."
    ),
)
def health_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Look once and report what is news.

    The cursor is what was reported last, in which ten minutes, and since when ClickHouse takes no deliveries.
    """
    health, now = read_health(pipeline.engine), datetime.now(UTC)
    before = _last_reported(context.cursor)
    since = _time_of(before.get("clickhouse_away_since")) or now
    reports = {
        **_reports(pipeline, health),
        CLICKHOUSE_ANSWERS: _clickhouse_report(pipeline, since),
        AUTOMATION_IS_ON: _automation_report(context.instance, pipeline),
        QUARANTINE_EMPTY: _quarantine_report(pipeline),
    }
    slot = int(now.timestamp()) // _REPORTED_EVERY_SECONDS
    answers = {name: f"{report.is_well} {report.cause}" for name, report in reports.items()}
    is_due = before.get("slot") != slot
    news = [name for name in reports if is_due or before.get("answers", {}).get(name) != answers[name]]
    has_heartbeat = is_due and reports[LAG_BELOW_THRESHOLD].is_well
    events = _about_outbox(health, has_heartbeat=has_heartbeat) if news else []
    away_since = None if reports[CLICKHOUSE_ANSWERS].is_well else since.isoformat(timespec="seconds")
    return dg.SensorResult(
        asset_events=[*events, *(_evaluation(name, reports[name]) for name in news)],
        skip_reason=_summary(reports, news),
        cursor=json.dumps({"slot": slot, "answers": answers, "clickhouse_away_since": away_since}),
    )


def _of_ledger(pipeline: PipelineResource) -> dict[str, Report]:
    return _reports(pipeline, read_health(pipeline.engine))


def _reports(pipeline: PipelineResource, health: Health) -> dict[str, Report]:
    limit_seconds = pipeline.settings.alert_lag_seconds
    return {
        LAG_BELOW_THRESHOLD: _report_of(judge_lag(health, limit_seconds=limit_seconds)),
        NO_OLD_GAP: _report_of(judge_gaps(health, limit_seconds=limit_seconds), _WARN),
        LEDGER_CONSISTENT: _report_of(judge_ledger(health)),
        NOTHING_PARKED: _report_of(judge_parked(health)),
    }


def _report_of(answer: Answer, severity: dg.AssetCheckSeverity = _ERROR) -> Report:
    return Report(answer.is_well, answer.said, answer.cause, _metadata_of(answer), severity)


def _clickhouse_report(pipeline: PipelineResource, since: datetime | None) -> Report:
    state, now = look_at_clickhouse(pipeline.engine, pipeline.settings), datetime.now(UTC)
    severity = _ERROR if is_for_long(since, now) else _WARN
    return _report_of(judge_clickhouse(state, since=since, now=now), severity)


def _automation_report(instance: dg.DagsterInstance, pipeline: PipelineResource) -> Report:
    names = switched_off(instance, pipeline.settings)
    return _report_of(judge_automation(names), _ERROR if stops_delivery(names) else _WARN)


def _quarantine_report(pipeline: PipelineResource) -> Report:
    held = quarantine.count_held(pipeline.engine)
    return Report(held.count == 0, told(held), held.summary(), of_held(held), _WARN)


def _result(report: Report) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=report.is_well, severity=report.severity, description=report.said, metadata=report.shown
    )


def _evaluation(name: str, report: Report) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=OUTBOX_KEY,
        check_name=name,
        passed=report.is_well,
        severity=report.severity,
        blocking=False,
        description=report.said,
        metadata=dict(report.shown),
    )


def _about_outbox(health: Health, *, has_heartbeat: bool) -> list[dg.AssetObservation | dg.AssetMaterialization]:
    seen = dg.AssetObservation(OUTBOX_KEY, metadata=_metadata_of_status(health.status))
    if not has_heartbeat:
        return [seen]
    heartbeat = dg.AssetMaterialization(
        OUTBOX_KEY,
        description="Nothing committed here is late: all of it is in event_log, in quarantine or on its way.",
        metadata={"lag_seconds": round(health.status.lag_seconds, 3)},
    )
    return [seen, heartbeat]


def _last_reported(cursor: str | None) -> dict[str, Any]:
    # A cursor of another form, from another version, only means that everything is reported once more.
    try:
        found = json.loads(cursor or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("answers"), dict) else {}


def _time_of(stored: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(stored)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else None


def _summary(reports: Mapping[str, Report], news: list[str]) -> str:
    wrong = [f"{name}: {report.said}" for name, report in reports.items() if not report.is_well]
    found = " ".join(wrong) or "all is well."
    return f"Reported {', '.join(news)}; {found}" if news else f"Unchanged; {found}"


def _metadata_of(answer: Answer) -> Metadata:
    """Show the numbers behind a check of the pipeline's health, and what exactly it found."""
    found = {"found": table(answer.rows)} if answer.rows else {}
    return {**answer.numbers, **found}


def _metadata_of_status(status: Status) -> Metadata:
    """Show the outbox as one point of its plots."""
    return {
        "pending": status.pending,
        "in_flight": status.in_flight,
        "parked": status.parked,
        "quarantined": status.quarantined,
        "undelivered": status.undelivered,
        "recorded_in_the_future": status.future,
        "lag_seconds": round(status.lag_seconds, 3),
        "open_batches": sum(status.open_batches.values()),
        "gaps": status.gaps,
    }
