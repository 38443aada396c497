"""How long each kind of run may be at work, after which Dagster counts it as failed and gives its place back.

A run whose machine, container or code server is gone stays among those at work: Dagster's own launcher does not report
it. `delivery.overtaken` ends those whose batch the ledger has given to another attempt; of all others nothing is known
but how long they may take. Invariant: each run of ours has a limit from its first step on, also one of the asset's
page, which has no job's tags; and no limit ends a run that works, because what has no bound of its own (batches that
are sent again) moves the limit on with each batch.
"""

import math
import time

import dagster as dg

from outbox_pipeline.limits import SLOWEST_BYTES_PER_SECOND, USUAL_LIMITS
from outbox_pipeline.orchestration.run_tags import MAX_RUNTIME_TAG, max_runtime
from outbox_pipeline.settings import Settings

#: A batch with all that its four steps may wait for, each of them tried up to four times.
DELIVERY_SECONDS = 3600

#: Work without a sign of life, which nothing of ours may do for longer.
_SILENT_SECONDS = USUAL_LIMITS.working
#: A statement of the ledger ends after this long on our side, whatever it waits for; so does opening a connection.
_STATEMENT_SECONDS = USUAL_LIMITS.statement + 5
#: At the slowest that was measured, 0.7 million rows a second, 200 million events a day.
_COMPARED_DAY_SECONDS = 300


def statements_seconds(count: int) -> float:
    """Return how long a run of *count* statements in PostgreSQL may take, connections counted as one each."""
    return count * _STATEMENT_SECONDS


def bounded_seconds(seconds: float) -> float:
    """Return how long a run may take that begins no step once *seconds* are over."""
    return seconds + _SILENT_SECONDS


def comparison_seconds(days: int) -> float:
    """Return how long a run may take to compare *days* on both sides."""
    return days * _COMPARED_DAY_SECONDS + _SILENT_SECONDS


def redelivery_seconds(settings: Settings) -> float:
    """Return how long a run may take to prove one batch and send it again, from the read of the largest one on."""
    return USUAL_LIMITS.reading + settings.batch_max_bytes / SLOWEST_BYTES_PER_SECOND + _SILENT_SECONDS


def require_limit(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Give a run without a limit that of a day's comparison, which is the longest step of the asset's own runs."""
    if MAX_RUNTIME_TAG not in run.tags:
        move_limit(instance, run.run_id, comparison_seconds(1))


def move_limit(instance: dg.DagsterInstance, run_id: str, seconds: float) -> None:
    """Let a run be at work for *seconds* from now on, whatever its limit was."""
    record = instance.get_run_record_by_id(run_id)
    if record is not None:
        worked = time.time() - (record.start_time or time.time())
        instance.add_run_tags(run_id, max_runtime(math.ceil(worked + seconds)))
