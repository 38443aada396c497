"""The sensor that tells a webhook of incidents: once when one opens, once when it ends.

What is wrong is asked anew in each tick, by the functions in `WATCHES`; what was told is in the sensor's cursor, which
outlives the daemon. Invariant: a notice leaves the cursor only after the webhook took it, so a tick that dies tells
again rather than never. The ledger decides whether a failed batch is tried again; nothing is told before it is parked,
and runs for one batch are not among the failed runs that are told. What the cursor keeps of failed runs is bounded, and
looking twice at a run changes nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from outbox_pipeline.batches import BATCH_ID_TAG, BatchStatus
from outbox_pipeline.counts import counted
from outbox_pipeline.errors import OutboxError
from outbox_pipeline.monitoring.health import lag_sentence
from outbox_pipeline.monitoring.incidents import Condition, Incidents
from outbox_pipeline.monitoring.status import Status, read_status
from outbox_pipeline.monitoring.webhook import post_json
from outbox_pipeline.orchestration.assets import EVENT_LOG
from outbox_pipeline.orchestration.delivery.steps import DELIVERED_WHOLE
from outbox_pipeline.orchestration.health import CLICKHOUSE_ANSWERS, LAG_BELOW_THRESHOLD, NOTHING_PARKED
from outbox_pipeline.orchestration.host.instance import LOCATION_NAME
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.run_tags import TOLD_BY_CHECK_TAG
from outbox_pipeline.settings import Settings

#: PostgreSQL may restart without an alert.
_AWAY_SECONDS = 60
#: Results of a check with partitions that are looked at: the latest of each of about so many days.
_MAX_RESULTS = 100
_NAMES_SHOWN = 5

#: Runs end on several hosts, whose clocks and commits are not in order: look back this far each time.
_OVERLAP = timedelta(seconds=60)
#: A sensor that was off for longer than this does not tell of what failed meanwhile.
_LOOKS_BACK = timedelta(days=1)
_MAX_RUNS_READ = 1000
_MAX_RUNS_KEPT = 200
#: A run that a sensor started is started again by it: only as many failures in a row are news.
_SENSOR_FAILURES = 3

#: Checks with an incident of their own: a parked batch or a failed run where a retry may be coming, and the lag.
_CHECKS_WITH_OWN_INCIDENT = frozenset({DELIVERED_WHOLE, LAG_BELOW_THRESHOLD, NOTHING_PARKED})
#: ClickHouse may restart without an alert: until it has been away for a minute this check is yellow.
_TOLD_WHEN_RED = frozenset({CLICKHOUSE_ANSWERS})


@dataclass(frozen=True)
class Look:
    """What a tick sees: the ledger's status, None while it cannot be read, and Dagster's instance and definitions."""

    now: datetime
    settings: Settings
    status: Status | None
    before: Incidents
    memory: dict[str, Any]
    instance: dg.DagsterInstance
    check_keys: tuple[dg.AssetCheckKey, ...]


#: Returns what is wrong, keys beginning with the watch's name, or None when it cannot know.
Watch = Callable[[Look], list[Condition] | None]


def watch_ledger(look: Look) -> list[Condition]:
    """The ledger has not been readable for a minute."""
    since = look.memory.get("away_since")
    if since is None or look.now - datetime.fromisoformat(since) < timedelta(seconds=_AWAY_SECONDS):
        return []
    return [Condition("ledger", "The ledger in PostgreSQL cannot be read.", "'outbox doctor' says why.")]


def watch_lag(look: Look) -> list[Condition] | None:
    """The oldest undelivered event is too old; over once it is half as old, so that it does not flap."""
    if look.status is None:
        return None
    limit_seconds = look.settings.alert_lag_seconds / (2 if "lag" in look.before.is_open else 1)
    if look.status.lag_seconds <= limit_seconds:
        return []
    title = f"{lag_sentence(look.status)}."
    detail = f"{look.status.undelivered:,} events wait. 'outbox status' says where, the page of outbox_sensor says why."
    return [Condition("lag", title, detail)]


def watch_parked(look: Look) -> list[Condition] | None:
    """Batches have used up their attempts and wait for a person."""
    if look.status is None:
        return None
    count = look.status.open_batches.get(BatchStatus.PARKED, 0)
    if not count:
        return []
    title = f"{count} {'batch is' if count == 1 else 'batches are'} parked with {counted(look.status.parked, 'event')}."
    return [Condition("parked", title, "Fix what 'outbox status' shows as last error, then 'outbox resume'.")]


def watch_checks(look: Look) -> list[Condition]:
    """Asset checks whose latest result is a failure; of a check with partitions, the latest of each partition."""
    return [found for key in look.check_keys if (found := _failed_check(look.instance, key)) is not None]


def watch_runs(look: Look) -> list[Condition]:
    """Runs have failed that nothing starts again by itself."""
    return [
        Condition(f"run:{group}", f"Runs of {group} failed.", f"Look at {_named(names)} on Dagster's Runs page.")
        for group, names in _failing_groups(look.memory["runs"]).items()
    ]


#: Everything that is watched. The key of an incident begins with the name here.
WATCHES: dict[str, Watch] = {
    "ledger": watch_ledger,
    "lag": watch_lag,
    "parked": watch_parked,
    "check": watch_checks,
    "run": watch_runs,
}


@dg.sensor(
    minimum_interval_seconds=20,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Tells OUTBOX_ALERT_WEBHOOK_URL of incidents, once when one opens and once when it ends: parked batches, lag "
        "above OUTBOX_ALERT_LAG_SECONDS, failed asset checks, failed runs that nothing repeats, a ledger that cannot "
        "be read. A batch that will be tried again is no incident. The skip reason says what is open and what waits."
    ),
)
def alert_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Compare what is wrong with what was told, and tell the difference; the cursor remembers both."""
    settings = pipeline.settings
    url = settings.alert_webhook_url
    if url is None:
        return dg.SensorResult(skip_reason="OUTBOX_ALERT_WEBHOOK_URL is not set, so incidents are sent nowhere.")
    incidents = _looked(context, pipeline, settings)
    left, sent_count, problem = incidents.send(lambda notice: post_json(url, notice.payload(settings.environment)))
    if problem is not None:
        context.log.warning(problem)
    return dg.SensorResult(skip_reason=_told(left, sent_count, problem), cursor=left.to_json())


def _looked(context: dg.SensorEvaluationContext, pipeline: PipelineResource, settings: Settings) -> Incidents:
    before, now = Incidents.from_json(context.cursor), datetime.now(UTC)
    status = _status(pipeline)
    memory: dict[str, Any] = {"runs": _remember_runs(context.instance, before.memory.get("runs", {}), now=now)}
    if status is None:
        memory["away_since"] = before.memory.get("away_since") or now.isoformat()
    look = Look(now, settings, status, before, memory, context.instance, _check_keys(context))
    results = {name: watch(look) for name, watch in WATCHES.items()}
    conditions = [condition for found in results.values() for condition in found or ()]
    unknown = {name for name, found in results.items() if found is None}
    return replace(before.after(conditions, unknown=unknown, now=now), memory=memory)


def _status(pipeline: PipelineResource) -> Status | None:
    try:
        return read_status(pipeline.engine)
    except OutboxError:
        return None


def _check_keys(context: dg.SensorEvaluationContext) -> tuple[dg.AssetCheckKey, ...]:
    if context.repository_def is None:
        return ()
    keys = context.repository_def.asset_graph.asset_check_keys
    return tuple(sorted((key for key in keys if key.name not in _CHECKS_WITH_OWN_INCIDENT), key=str))


def _failed_check(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> Condition | None:
    latest: dict[str | None, dg.AssetCheckEvaluation] = {}
    for partition, evaluation in _results(instance, key):
        latest.setdefault(partition, evaluation)
    if len(latest) > 1:
        # A result without a day repeats those of its days, which later results replace.
        latest.pop(None, None)
    failed = {partition: found for partition, found in latest.items() if not found.passed}
    if key.name in _TOLD_WHEN_RED:
        failed = {
            partition: found for partition, found in failed.items() if found.severity != dg.AssetCheckSeverity.WARN
        }
    if not failed:
        return None
    partition, worst = next(iter(failed.items()))
    days = "" if partition is None else f" for {_named([str(day) for day in failed])}"
    return Condition(
        f"check:{key.asset_key.to_user_string()}/{key.name}",
        f"Check {key.name} of {key.asset_key.to_user_string()} failed{days}.",
        worst.description or "Look at the asset's Checks page.",
        "warning" if all(one.severity == dg.AssetCheckSeverity.WARN for one in failed.values()) else "critical",
    )


def _results(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> list[tuple[str | None, dg.AssetCheckEvaluation]]:
    storage = instance.event_log_storage
    records = storage.get_asset_check_execution_history(key, limit=5)
    if any(record.partition is not None for record in records):
        records = storage.get_asset_check_execution_history(key, limit=_MAX_RESULTS)
    events = [(record.partition, record.event.dagster_event) for record in records if record.event is not None]
    return [
        (partition, event.asset_check_evaluation_data)
        for partition, event in events
        if event is not None and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]


def _remember_runs(instance: dg.DagsterInstance, memory: Mapping[str, Any], *, now: datetime) -> dict[str, Any]:
    """Return what is remembered after the runs that ended since the last look.

    `failing` has, by partition or job, the ids of the runs that failed since the last success and what they belong to.
    """
    begun = _time_of(memory.get("begun"), now)
    seen = max(_time_of(memory.get("seen"), now), now - _LOOKS_BACK)
    failing: dict[str, dict[str, Any]] = {name: dict(entry) for name, entry in memory.get("failing", {}).items()}
    # What failed before the first look is no news.
    for record in _ended_runs(instance, since=max(seen - _OVERLAP, begun)):
        seen = max(seen, record.update_timestamp)
        _note_run(failing, record.dagster_run)
    kept = dict(list(failing.items())[-_MAX_RUNS_KEPT:])
    return {"begun": begun.isoformat(), "seen": seen.isoformat(), "failing": kept}


def _failing_groups(memory: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return by job or backfill what of it is failing for good: partitions, or the job itself."""
    groups: dict[str, list[str]] = {}
    for name, entry in memory.get("failing", {}).items():
        if len(entry["runs"]) >= entry["needed"]:
            groups.setdefault(entry["group"], []).append(name)
    return groups


def _time_of(stored: str | None, otherwise: datetime) -> datetime:
    return otherwise if stored is None else datetime.fromisoformat(stored)


def _ended_runs(instance: dg.DagsterInstance, *, since: datetime) -> Sequence[dg.RunRecord]:
    ended = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS], updated_after=since)
    return instance.get_run_records(ended, limit=_MAX_RUNS_READ, order_by="update_timestamp", ascending=True)


def _note_run(failing: dict[str, dict[str, Any]], run: dg.DagsterRun) -> None:
    if not _is_ours(run) or _is_for_a_batch(run) or run.tags.get("dagster/will_retry") == "true":
        return
    name = run.tags.get("dagster/partition") or run.job_name
    if run.status == dg.DagsterRunStatus.SUCCESS or TOLD_BY_CHECK_TAG in run.tags:
        failing.pop(name, None)
        return
    backfill = run.tags.get("dagster/backfill")
    entry = failing.setdefault(name, {"runs": [], "group": f"backfill {backfill}" if backfill else run.job_name})
    entry["needed"] = _SENSOR_FAILURES if "dagster/sensor_name" in run.tags else 1
    if run.run_id not in entry["runs"]:
        entry["runs"] = [*entry["runs"], run.run_id][-_SENSOR_FAILURES:]


def _is_ours(run: dg.DagsterRun) -> bool:
    return run.remote_job_origin is None or run.remote_job_origin.location_name == LOCATION_NAME


def _is_for_a_batch(run: dg.DagsterRun) -> bool:
    if BATCH_ID_TAG in run.tags:
        return True
    # Started by hand from the launchpad, it has no tag.
    found: Any = run.run_config
    for name in ("ops", EVENT_LOG.to_python_identifier(), "config", "batch_id"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found is not None


def _named(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _told(left: Incidents, sent_count: int, problem: str | None) -> str:
    is_open = ", ".join(left.is_open) or "none"
    sent = f"Sent {sent_count} notices. " if sent_count else ""
    waiting = f"{len(left.unsent)} notices wait for the next tick. " if left.unsent else ""
    return f"{sent}{waiting}{problem + ' ' if problem else ''}Open incidents: {is_open}."
