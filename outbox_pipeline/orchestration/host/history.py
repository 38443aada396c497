"""Purge what Dagster keeps of how old runs went step by step: step events, log lines, captured output.

Dagster has no setting for it: `retention` in dagster.yaml is about ticks, and deleting a run would free its run key and
take its materializations along. So rows of a closed list of types go from its table of events, in bounded steps.

Invariant: runs, their tags and keys, run status events, step failures, materializations, observations and check
evaluations stay, and so does everything of runs that are not finished or belong to another code location.
"""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile

import dagster as dg
from dagster_postgres.event_log import PostgresEventLogStorage
from sqlalchemy import and_, column, delete, or_, select, table

from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.orchestration.host.instance import LOCATION_NAME

#: Types of events that only tell how a run went step by step.
PURGED_TYPES = (
    "ENGINE_EVENT",
    "HANDLED_OUTPUT",
    "HOOK_COMPLETED",
    "HOOK_SKIPPED",
    "LOADED_INPUT",
    "LOGS_CAPTURED",
    "OBJECT_STORE_OPERATION",
    "RESOURCE_INIT_FAILURE",
    "RESOURCE_INIT_STARTED",
    "RESOURCE_INIT_SUCCESS",
    "STEP_INPUT",
    "STEP_OUTPUT",
    "STEP_RESTARTED",
    "STEP_SKIPPED",
    "STEP_START",
    "STEP_SUCCESS",
    "STEP_UP_FOR_RETRY",
    "STEP_WORKER_STARTED",
    "STEP_WORKER_STARTING",
)
#: Dagster's own tag on each run that a code location was asked for.
LOCATION_TAG = ".dagster/repository"
OWN_LOCATION = f"__repository__@{LOCATION_NAME}"

_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_ROWS_A_STEP = 10_000
_CURSOR = "outbox_pipeline/purged_up_to_event"

_EVENTS = table("event_logs", column("id"), column("run_id"), column("dagster_event_type"), column("timestamp"))


@dataclass(frozen=True)
class Purged:
    """What a purge did; `is_finished` is False when its time was up before the end."""

    events: int = 0
    runs: int = 0
    is_finished: bool = True


def purge_history(instance: dg.DagsterInstance, *, days: int, seconds: float) -> Purged:
    """Purge events older than *days* of finished runs of this code location, oldest first; 0 days purge nothing.

    Each event is looked at once: the instance keeps how far the last purge came. Stops between two steps once *seconds*
    are over. Raises ConfigurationError when the instance does not keep its events in PostgreSQL.
    """
    result = Purged()
    if days == 0:
        return result
    storage = _storage(instance)
    before = datetime.now(UTC) - timedelta(days=days)
    started = time.monotonic()
    while events := _next_events(storage, after=_cursor(instance), before=before):
        finished = _finished_runs(instance, {run_id for _, run_id in events})
        count = _delete(storage, first_id=events[0][0], last_id=events[-1][0], run_ids=finished)
        for run_id in finished:
            instance.compute_log_manager.delete_logs(prefix=[run_id])
        instance.daemon_cursor_storage.set_cursor_values({_CURSOR: str(events[-1][0])})
        result = Purged(result.events + count, result.runs + len(finished))
        if time.monotonic() - started >= seconds:
            return replace(result, is_finished=False)
    return result


def _storage(instance: dg.DagsterInstance) -> PostgresEventLogStorage:
    storage = instance.event_log_storage
    if not isinstance(storage, PostgresEventLogStorage):
        raise ConfigurationError(
            "Dagster does not keep its events in PostgreSQL here, so they are not purged: give its dagster.yaml the "
            "storage that this repository's has, or set OUTBOX_DAGSTER_HISTORY_DAYS to 0."
        )
    return storage


def _cursor(instance: dg.DagsterInstance) -> int:
    return int(instance.daemon_cursor_storage.get_cursor_values({_CURSOR}).get(_CURSOR, 0))


def _next_events(storage: PostgresEventLogStorage, *, after: int, before: datetime) -> list[tuple[int, str]]:
    """Return number and run of the next events, up to the first that is too young; they are numbered as they come."""
    statement = select(_EVENTS.c.id, _EVENTS.c.run_id, _EVENTS.c.timestamp).where(_EVENTS.c.id > after)
    with storage.index_connection() as connection:
        rows = connection.execute(statement.order_by(_EVENTS.c.id).limit(_ROWS_A_STEP)).all()
    # Dagster stores UTC without saying so.
    limit = before.replace(tzinfo=None)
    return [(row.id, row.run_id) for row in takewhile(lambda row: row.timestamp < limit, rows)]


def _finished_runs(instance: dg.DagsterInstance, run_ids: set[str]) -> list[str]:
    wanted = dg.RunsFilter(run_ids=sorted(run_ids), statuses=_FINISHED, tags={LOCATION_TAG: OWN_LOCATION})
    return [run.run_id for run in instance.get_runs(wanted)]


def _delete(storage: PostgresEventLogStorage, *, first_id: int, last_id: int, run_ids: list[str]) -> int:
    if not run_ids:
        return 0
    # Log lines of ops have no type.
    is_purged = or_(_EVENTS.c.dagster_event_type.in_(PURGED_TYPES), _EVENTS.c.dagster_event_type.is_(None))
    is_within = and_(_EVENTS.c.id.between(first_id, last_id), _EVENTS.c.run_id.in_(run_ids))
    with storage.index_connection() as connection:
        return int(connection.execute(delete(_EVENTS).where(is_within, is_purged)).rowcount)
