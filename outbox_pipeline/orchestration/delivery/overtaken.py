"""Runs whose attempt is over in the ledger keep no place in Dagster's queue.

A process that died with its machine, its code server or its worker leaves a run that Dagster counts among those at
work, until `dagster/max_runtime` ends it an hour later. The ledger knows sooner, whatever launched the run: it has
drawn another attempt. Invariant: a run is ended only when its attempt was seen to be over for a whole lease, so that a
process that is merely slow can end its run itself; and never while the batch is delivered by that very run, because a
run that is executed again carries the tags of the attempt before.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import dagster as dg

from outbox_pipeline.batches import BATCH_ID_TAG
from outbox_pipeline.orchestration.delivery.event_log import deliver_batch
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.run_tags import ATTEMPT_TAG
from outbox_pipeline.relay.attempts import latest_attempts

#: Since when a tick has known that the run's attempt is over.
OVER_SINCE_TAG = "outbox/attempt_over_since"

#: Runs that one tick looks at; far more than work at once.
_MAX_RUNS = 100


def end_overtaken_runs(instance: dg.DagsterInstance, pipeline: PipelineResource) -> None:
    """Report runs as failed that count as started though the ledger has gone on without them for a whole lease."""
    started = dg.RunsFilter(job_name=deliver_batch.name, statuses=[dg.DagsterRunStatus.STARTED])
    runs = instance.get_runs(started, limit=_MAX_RUNS)
    overtaken, now = _overtaken(runs, pipeline), datetime.now(UTC)
    for run in runs:
        since = run.tags.get(OVER_SINCE_TAG)
        if run.run_id not in overtaken:
            if since:
                # It was executed again and has taken its batch meanwhile. Dagster removes no tag.
                instance.add_run_tags(run.run_id, {OVER_SINCE_TAG: ""})
        elif not since:
            instance.add_run_tags(run.run_id, {OVER_SINCE_TAG: now.isoformat(timespec="seconds")})
        elif now - datetime.fromisoformat(since) > pipeline.settings.lease:
            instance.report_run_failed(run, f"Its attempt was taken over by attempt {overtaken[run.run_id]}.")


def _overtaken(runs: Sequence[dg.DagsterRun], pipeline: PipelineResource) -> dict[str, int]:
    """Return the latest attempt on the batch of each run that does not have it; by the run's id."""
    asked_for = {run.run_id: found for run in runs if (found := _asked_for(run)) is not None}
    if not asked_for:
        return {}
    latest = latest_attempts(pipeline.engine, {batch_id for batch_id, _ in asked_for.values()})
    return {
        run_id: latest[batch_id][0]
        for run_id, (batch_id, attempt) in asked_for.items()
        if batch_id in latest and latest[batch_id][0] > attempt and latest[batch_id][1] != run_id
    }


def _asked_for(run: dg.DagsterRun) -> tuple[UUID, int] | None:
    """Return the batch and attempt that a run was asked for; None for a run of a day, and for one by hand."""
    try:
        return UUID(run.tags[BATCH_ID_TAG]), int(run.tags[ATTEMPT_TAG])
    except (KeyError, ValueError):
        return None
