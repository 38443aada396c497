"""The sensor that finds pending events, cuts them into batches and starts a run for each batch that is due.

It also compares the requests that no run has taken up yet with what Dagster knows of their runs. A run that waits in
the queue, or is being started, may wait; one that has ended before its first step, or never came to be because a
process died between the tick and the launch, is given up at once instead of after OUTBOX_REQUEST_SECONDS. Should such a
run start after all, its attempt is over and it does nothing.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import dagster as dg

from outbox_pipeline.batches import BATCH_ID_TAG, BatchRequest
from outbox_pipeline.errors import TransientError
from outbox_pipeline.orchestration.assets import EVENT_LOG
from outbox_pipeline.orchestration.delivery.event_log import deliver_batch
from outbox_pipeline.orchestration.delivery.overtaken import end_overtaken_runs
from outbox_pipeline.orchestration.delivery.run import RECORDED_ON_TAG
from outbox_pipeline.orchestration.partitions import deliverable_days, nearest_day
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.run_tags import ATTEMPT_TAG
from outbox_pipeline.orchestration.shared_settings import settings_tag
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import read_requested, set_request_end
from outbox_pipeline.relay.tick import plan_tick
from outbox_pipeline.relay.witness import ask_seen
from outbox_pipeline.settings import load_settings

#: Runs for days, from the backfill page, have none and wait in the queue until new events are on their way.
_BEFORE_BACKFILLS = {"dagster/priority": "1"}

#: The cursor, which a person may read; behind the second one stands since when.
_ANSWERING = "ClickHouse answers"
_AWAY = "ClickHouse does not answer since "

#: A younger request is on its way: the daemon launches the runs of a tick after the tick has ended.
_FRESH_SECONDS = 10.0
#: After this long a request without any run will not get one.
_LOST_SECONDS = 25.0

#: A run that starts waits for its machine, a worker or an image; Dagster's own start timeout ends it.
_WAITING = frozenset({dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING})


def _minimum_interval_seconds() -> int:
    # Dagster looks at sensors every 5 s and skips one whose last tick is younger than this by a millisecond, so the
    # wanted pause itself would often become twice as long.
    return max(1, load_settings().sensor_interval_seconds - 1)


def _away_since(cursor: str | None) -> str | None:
    return cursor.removeprefix(_AWAY) if cursor and cursor.startswith(_AWAY) else None


@dg.sensor(
    job=deliver_batch,
    minimum_interval_seconds=_minimum_interval_seconds(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Cuts pending events into batches and starts a run for each batch that is new, whose backoff is over, or whose "
        "run died. Starts nothing while ClickHouse does not answer; the skip reason says since when. Keep it running."
    ),
)
def outbox_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Plan one tick; the ledger remembers, so a tick that is lost or evaluated twice does no harm."""
    try:
        # Attempts on a log that is not there, or another outbox's, would fail until their batches are parked.
        seen = ask_seen(pipeline.engine, pipeline.settings)
    except TransientError as error:
        since = _away_since(context.cursor) or f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        return dg.SensorResult(
            skip_reason=f"No runs while ClickHouse is away (since {since}): {error}", cursor=f"{_AWAY}{since}"
        )
    _update_request_ends(context.instance, pipeline)
    end_overtaken_runs(context.instance, pipeline)
    tick = plan_tick(pipeline.engine, pipeline.settings, days=deliverable_days(), seen=seen)
    if tick.is_held_back:
        context.log.warning(f"Held back: {tick.summary()}.")
    requests = _run_requests(tick.requests, settings_tag(pipeline.settings))
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else f"No batch is due: {tick.summary()}.",
        cursor=_ANSWERING,
    )


def _update_request_ends(instance: dg.DagsterInstance, pipeline: PipelineResource) -> None:
    """Give up requests whose run has ended or does not exist, and let those wait on whose run has not begun."""
    with ledger_transaction(pipeline.engine) as connection:
        requested = read_requested(connection, older_than_seconds=_FRESH_SECONDS)
    for batch_id, attempt, age_seconds in requested:
        lasting = _time_left(instance, pipeline, (batch_id, attempt), age_seconds)
        if lasting is not None:
            with ledger_transaction(pipeline.engine) as connection:
                set_request_end(connection, batch_id, attempt, lasting=lasting)


def _time_left(
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


def _of_other_day(request: BatchRequest) -> dict[str, str]:
    day = request.recorded_on
    return {} if nearest_day(day) == day else {RECORDED_ON_TAG: day.isoformat()}


def _run_requests(requests: Sequence[BatchRequest], settings: dict[str, str]) -> list[dg.RunRequest]:
    return [
        dg.RunRequest(
            run_key=f"{request.batch_id}:{request.attempt}",
            partition_key=nearest_day(request.recorded_on).isoformat(),
            run_config={
                "ops": {
                    EVENT_LOG.to_python_identifier(): {
                        "config": {"batch_id": str(request.batch_id), "attempt": request.attempt}
                    }
                }
            },
            tags={BATCH_ID_TAG: str(request.batch_id), ATTEMPT_TAG: str(request.attempt), **_of_other_day(request)}
            | _BEFORE_BACKFILLS
            | settings,
        )
        for request in requests
    ]
