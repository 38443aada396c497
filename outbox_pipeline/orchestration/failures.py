"""Failed runs that nobody repeats by themselves, kept between two looks at the instance.

Runs for one batch are not among them: the ledger decides whether such a batch is tried again or parked, and a parked
batch is a condition of its own. Invariant: what is remembered is bounded, and looking twice at a run changes nothing.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import dagster as dg

from outbox_pipeline.orchestration.assets import EVENT_LOG
from outbox_pipeline.orchestration.host.instance import LOCATION_NAME
from outbox_pipeline.orchestration.requests import BATCH_ID_TAG

#: Runs end on several hosts, whose clocks and commits are not in order: look back this far each time.
_OVERLAP = timedelta(seconds=60)
#: A sensor that was off for longer than this does not tell of what failed meanwhile.
_LOOKS_BACK = timedelta(days=1)
_MOST_READ = 1000
_MOST_KEPT = 200
#: A run that a sensor started is started again by it: only as many failures in a row are news.
_SENSOR_FAILURES = 3

Memory = Mapping[str, Any]


def remember_runs(instance: dg.DagsterInstance, memory: Memory, *, now: datetime) -> dict[str, Any]:
    """Return what is remembered after the runs that ended since the last look.

    `failing` has, by partition or job, the ids of the runs that failed since the last success and what they belong to.
    """
    begun = _time(memory.get("begun"), now)
    seen = max(_time(memory.get("seen"), now), now - _LOOKS_BACK)
    failing: dict[str, dict[str, Any]] = {name: dict(entry) for name, entry in memory.get("failing", {}).items()}
    # What failed before the first look is no news.
    for record in _ended(instance, since=max(seen - _OVERLAP, begun)):
        seen = max(seen, record.update_timestamp)
        _note(failing, record.dagster_run)
    kept = dict(list(failing.items())[-_MOST_KEPT:])
    return {"begun": begun.isoformat(), "seen": seen.isoformat(), "failing": kept}


def failing_groups(memory: Memory) -> dict[str, list[str]]:
    """Return by job or backfill what of it is failing for good: partitions, or the job itself."""
    groups: dict[str, list[str]] = {}
    for name, entry in memory.get("failing", {}).items():
        if len(entry["runs"]) >= entry["needed"]:
            groups.setdefault(entry["group"], []).append(name)
    return groups


def _time(stored: str | None, otherwise: datetime) -> datetime:
    return otherwise if stored is None else datetime.fromisoformat(stored)


def _ended(instance: dg.DagsterInstance, *, since: datetime) -> Sequence[dg.RunRecord]:
    ended = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS], updated_after=since)
    return instance.get_run_records(ended, limit=_MOST_READ, order_by="update_timestamp", ascending=True)


def _note(failing: dict[str, dict[str, Any]], run: dg.DagsterRun) -> None:
    if not _is_ours(run) or _is_for_a_batch(run) or run.tags.get("dagster/will_retry") == "true":
        return
    name = run.tags.get("dagster/partition") or run.job_name
    if run.status == dg.DagsterRunStatus.SUCCESS:
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
