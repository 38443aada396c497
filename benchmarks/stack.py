"""Dagster's real processes on a measurement's engines, and what they leave behind about every run and tick.

The stack is the one `outbox up` starts: code server, daemon and webserver, runs forked from the code server. Times come
from Dagster's own event log and tick records and from the ledger; all are the same machine's clock.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from uuid import UUID

import dagster as dg
import psutil
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from sqlalchemy import Engine, text

from benchmarks.common import PeakMemory, engine_pids, percentiles
from outbox_pipeline.batches import BATCH_ID_TAG
from outbox_pipeline.cli.up import dagster_environment
from outbox_pipeline.orchestration.host.instance import prepare_dagster_home
from outbox_pipeline.orchestration.host.stack import CeleryPlan, DagsterStack, dagster_stack
from outbox_pipeline.processes import wait_until
from outbox_pipeline.stores import Stores

_SAMPLE_SECONDS = 0.2
_UNFINISHED = dg.RunsFilter(statuses=[status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES])

_PROCESSED = text(
    "SELECT coalesce(sum(event_count), 0)::bigint FROM outbox.batch"
    " WHERE processed_at IS NOT NULL AND first_position > :after"
)
_LEDGER = text(
    "SELECT batch_id, event_count, extract(epoch FROM cut_at)::float8 AS cut_at,"
    " extract(epoch FROM requested_at)::float8 AS requested_at, extract(epoch FROM started_at)::float8 AS started_at,"
    " extract(epoch FROM processed_at)::float8 AS processed_at"
    " FROM outbox.batch WHERE first_position > :after ORDER BY cut_at"
)


@dataclass
class Peaks:
    """Most resident memory of any run's process and of ClickHouse, in megabytes; a run's includes what it shares."""

    run_mb: int = 0
    runs_at_once: int = 0
    clickhouse_mb: int = 0
    clickhouse_before_mb: int = 0


@dataclass(frozen=True)
class BatchTimes:
    """When a batch and its run got where, in Unix seconds."""

    batch_id: UUID
    events: int
    cut: float
    requested: float
    enqueued: float
    dequeued: float
    first_op: float
    leased: float
    last_op: float
    run_ended: float
    processed: float
    ops: Mapping[str, float] = field(default_factory=dict)

    def parts(self) -> dict[str, float]:
        """Split the time from the cut to the end of the run, in the order things happen."""
        return {
            "cut_to_request": self.requested - self.cut,
            "request_to_queue": self.enqueued - self.requested,
            "queue_wait": self.dequeued - self.enqueued,
            "process_start": self.first_op - self.dequeued,
            "work": self.last_op - self.first_op,
            "end": self.run_ended - self.last_op,
        }


@contextmanager
def running_dagster(stores: Stores, *, celery: CeleryPlan | None = None, **environment: str) -> Iterator[DagsterStack]:
    """Run the stack on the stores during the block, its runs on Celery where that is given."""
    settings = stores.settings
    given = {**dagster_environment(settings), **environment}
    with dagster_stack(settings.home, given, port=0, celery=celery) as stack:
        yield stack


@contextmanager
def watching_memory(stack: DagsterStack) -> Iterator[Peaks]:
    """Watch the memory of runs, by samples, and of ClickHouse, as the kernel counts it, during the block."""
    clickhouse = PeakMemory(engine_pids()["clickhouse"])
    peaks, stopped = Peaks(clickhouse_before_mb=clickhouse.before_mb), threading.Event()

    def sample() -> None:
        while not stopped.wait(_SAMPLE_SECONDS):
            runs = _run_megabytes(stack.processes["code"].pid)
            peaks.run_mb = max([peaks.run_mb, *runs])
            peaks.runs_at_once = max(peaks.runs_at_once, len(runs))

    thread = threading.Thread(target=sample, name="memory")
    thread.start()
    try:
        yield peaks
    finally:
        stopped.set()
        thread.join()
        peaks.clickhouse_mb = clickhouse.peak_mb


def wait_processed(engine: Engine, count: int, *, after: int, seconds: float) -> None:
    """Wait until *count* events above position *after* are processed. Raises TimeoutError."""

    def are_processed() -> bool:
        with engine.begin() as connection:
            return int(connection.scalar(_PROCESSED, {"after": after}) or 0) >= count

    if not wait_until(are_processed, seconds=seconds, pause=0.5):
        raise TimeoutError(f"Not all of {count} events are delivered after {seconds:.0f} s.")


def read_batches(stores: Stores, *, after: int) -> list[BatchTimes]:
    """Return the times of the batches above position *after* and of the runs that delivered them, oldest cut first."""
    with stores.engine.begin() as connection:
        rows = connection.execute(_LEDGER, {"after": after}).mappings().all()
    with instance_of(stores) as instance:
        # A run ends a moment after it has marked its batch.
        wait_until(lambda: not instance.get_runs_count(_UNFINISHED), seconds=60, pause=0.2)
        found = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS]))
        runs = {run.tags.get(BATCH_ID_TAG): run.run_id for run in found}
        return [_times(dict(row), instance, runs[str(row["batch_id"])]) for row in rows]


def read_ticks(stores: Stores, *, since: float) -> list[tuple[float, float, int]]:
    """Return start, seconds and number of requested runs of each finished tick of `outbox_sensor`, oldest first."""
    with instance_of(stores) as instance:
        states = [state for state in instance.all_instigator_state() if state.instigator_name == "outbox_sensor"]
        ticks = [
            tick
            for state in states
            for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, after=since, limit=10_000)
            if tick.end_timestamp is not None
        ]
        shown = [(tick.timestamp, (tick.end_timestamp or 0) - tick.timestamp, len(tick.run_ids)) for tick in ticks]
    return sorted(shown)


@contextmanager
def instance_of(stores: Stores) -> Iterator[dg.DagsterInstance]:
    """Open the stack's Dagster instance; its URL is in this process's environment."""
    instance = dg.DagsterInstance.from_config(str(prepare_dagster_home(stores.settings.home)))
    try:
        yield instance
    finally:
        instance.dispose()


def run_figures(batches: Iterable[BatchTimes]) -> dict[str, Any]:
    """Say how many events a run took and where its seconds went: medians of the parts, and of each op."""
    found = list(batches)
    parts = [batch.parts() for batch in found]
    ops = [batch.ops for batch in found]
    return {
        "runs": len(found),
        "events_per_run": round(median(batch.events for batch in found)),
        "seconds": {name: round(median(each[name] for each in parts), 3) for name in parts[0]},
        "seconds_p95": {name: percentiles([each[name] for each in parts])["p95"] for name in parts[0]},
        "op_seconds": {name: round(median(each[name] for each in ops), 3) for name in ops[0]},
        "process_start_share": round(
            sum(each["process_start"] + each["end"] for each in parts)
            / sum(each["process_start"] + each["work"] + each["end"] for each in parts),
            3,
        ),
    }


def tick_figures(ticks: Iterable[tuple[float, float, int]]) -> dict[str, Any]:
    """Say how long ticks took that asked for runs and ticks that did not."""
    found = list(ticks)
    asking = [seconds for _, seconds, runs in found if runs]
    idle = [seconds for _, seconds, runs in found if not runs]
    return {
        "asking": {"ticks": len(asking), "runs_at_most": max((runs for *_, runs in found), default=0)}
        | percentiles(asking),
        "skipping": {"ticks": len(idle)} | percentiles(idle),
    }


def _times(row: Mapping[str, Any], instance: dg.DagsterInstance, run_id: str) -> BatchTimes:
    kind = dg.DagsterEventType
    at: dict[dg.DagsterEventType, list[float]] = {}
    steps: dict[str, list[float]] = {}
    for entry in instance.all_logs(run_id):
        event = entry.dagster_event
        if event is None:
            continue
        at.setdefault(event.event_type, []).append(entry.timestamp)
        if event.step_key and event.event_type in (kind.STEP_START, kind.STEP_SUCCESS):
            steps.setdefault(event.step_key.rpartition(".")[2], []).append(entry.timestamp)
    return BatchTimes(
        batch_id=row["batch_id"],
        events=row["event_count"],
        cut=row["cut_at"],
        requested=row["requested_at"],
        enqueued=at[kind.RUN_ENQUEUED][0],
        dequeued=at[kind.RUN_STARTING][0],
        first_op=at[kind.STEP_START][0],
        leased=row["started_at"],
        last_op=at[kind.STEP_SUCCESS][-1],
        run_ended=at[kind.RUN_SUCCESS][0],
        processed=row["processed_at"],
        ops={name: times[-1] - times[0] for name, times in steps.items()},
    )


def _run_megabytes(code_server: int) -> list[int]:
    # Runs are children of the process they are forked from, which is a child of the code server.
    found: list[int] = []
    with suppress(psutil.NoSuchProcess):
        for forker in psutil.Process(code_server).children():
            for run in forker.children():
                with suppress(psutil.NoSuchProcess):
                    found.append(round(run.memory_info().rss / 1e6))
    return found
