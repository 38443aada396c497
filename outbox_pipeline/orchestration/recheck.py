"""The second look: a batch that took more than one attempt is proved once more some time after it was marked.

Every known way in which a dead attempt could still reach ClickHouse is closed before marking. This look would notice
an unknown one, and send the batch again where ClickHouse differs.
"""

from datetime import UTC, datetime

import dagster as dg

from outbox_pipeline.counts import counted
from outbox_pipeline.operations.replay import Outcome, rechecks_due, replay
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.run_limits import move_limit, redelivery_seconds
from outbox_pipeline.orchestration.run_tags import max_runtime
from outbox_pipeline.orchestration.shared_settings import settings_tag
from outbox_pipeline.orchestration.shown import of_replay
from outbox_pipeline.orchestration.step_failures import one_sentence
from outbox_pipeline.settings import load_settings

#: A run that failed is asked for again this much later: its key then has another number at the end.
_ASKED_AGAIN_SECONDS = 300


@dg.op(out=dg.Out(dg.Nothing), tags={"kind": "clickhouse"})
def recheck_due(context: dg.OpExecutionContext, pipeline: PipelineResource):  # type: ignore[no-untyped-def]
    """Prove each batch that is due, and deliver again what ClickHouse shows differently.

    A run that dies has proved some of them; the sensor asks for the rest. A redelivery that fails is in the ledger, and
    outbox_sensor takes it up.
    """
    replayed = []
    with one_sentence():
        for item in replay(pipeline.stores, rechecks_due(pipeline.stores), run_id=context.run_id):
            replayed.append(item)
            move_limit(context.instance, context.run_id, redelivery_seconds(pipeline.settings))
    for item in replayed:
        if item.outcome != Outcome.PROVEN:
            context.log.warning(
                f"Batch {item.batch_id}: {item.outcome}, {counted(item.row_count, 'row')}. {item.detail}"
            )
    context.add_output_metadata(of_replay(replayed))


@dg.job(
    description=(
        "Prove once more each batch that took several attempts, OUTBOX_RECHECK_SECONDS after it was marked. "
        "recheck_sensor starts it; started by hand it does nothing when no batch is due."
    ),
    run_tags=max_runtime(redelivery_seconds(load_settings())) | settings_tag(load_settings()),
)
def recheck_batches() -> None:
    """Take the second look at whatever is due."""
    recheck_due()


@dg.sensor(
    job=recheck_batches,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Starts recheck_batches when a batch that took several attempts is due for its second look. One query in "
        "PostgreSQL; most ticks start nothing."
    ),
)
def recheck_sensor(pipeline: PipelineResource) -> dg.SensorResult:
    """Ask for one run while batches are due; the key keeps a queued run from being asked for twice."""
    due = rechecks_due(pipeline.stores)
    if not due:
        return dg.SensorResult(skip_reason="No batch is due for a second look.")
    first = due[0]
    key = f"{first.batch_id}:{first.attempt}:{int(datetime.now(UTC).timestamp()) // _ASKED_AGAIN_SECONDS}"
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=key, tags=settings_tag(pipeline.settings))])
