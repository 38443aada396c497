"""Requests that no run has taken up yet, compared with what Dagster knows of their runs.

A run that waits in the queue may wait; one that has ended before its first op, or never came to be because a process
died between the tick and the launch, is given up at once instead of after OUTBOX_REQUEST_SECONDS. Should such a run
start after all, its attempt is over and it does nothing.
"""

from datetime import timedelta
from uuid import UUID

import dagster as dg

from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import read_requested, set_request_end

BATCH_ID_TAG = "outbox/batch_id"
ATTEMPT_TAG = "outbox/attempt"
#: On a run whose batch is of a day that is no partition: the run is then under the nearest day that is one.
RECORDED_ON_TAG = "outbox/recorded_on"

#: A younger request is on its way: the daemon launches the runs of a tick after the tick has ended.
_FRESH_SECONDS = 10.0
#: After this long a request without any run will not get one.
_LOST_SECONDS = 25.0

_WAITING = frozenset({dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED})


def tend_requests(instance: dg.DagsterInstance, pipeline: PipelineResource) -> None:
    """Give up requests whose run has ended or does not exist, and let those in the queue wait on."""
    with ledger_transaction(pipeline.engine) as connection:
        requested = read_requested(connection, older_than_seconds=_FRESH_SECONDS)
    for batch_id, attempt, age_seconds in requested:
        lasting = _patience(instance, pipeline, (batch_id, attempt), age_seconds)
        if lasting is not None:
            with ledger_transaction(pipeline.engine) as connection:
                set_request_end(connection, batch_id, attempt, lasting=lasting)


def _patience(
    instance: dg.DagsterInstance, pipeline: PipelineResource, request: tuple[UUID, int], age_seconds: float
) -> timedelta | None:
    batch_id, attempt = request
    tags = {BATCH_ID_TAG: str(batch_id), ATTEMPT_TAG: str(attempt)}
    runs = instance.get_runs(dg.RunsFilter(tags=tags), limit=1)
    if not runs:
        return timedelta(0) if age_seconds > _LOST_SECONDS else None
    if runs[0].status in _WAITING:
        return timedelta(seconds=pipeline.settings.request_seconds)
    return timedelta(0) if runs[0].is_finished else None
