"""The job that delivers one batch or proves one day, and the one that lets parked batches be tried again."""

import dagster as dg
from pydantic import Field

from outbox_pipeline.operations.resume import resume
from outbox_pipeline.orchestration.delivery.event_log import event_log
from outbox_pipeline.orchestration.delivery.run import one_sentence
from outbox_pipeline.orchestration.reconcile import reconciled
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.run_config import literal

#: Longest a run may take in seconds. A run whose code server was killed would otherwise count as started for ever.
MAX_RUNTIME_SECONDS = 3600

deliver_batch = dg.define_asset_job(
    "deliver_batch",
    # This check has a job of its own; a delivery must not pay for it.
    selection=dg.AssetSelection.assets(event_log) - dg.AssetSelection.checks(reconciled),
    description=(
        "Extract, validate, load and mark one batch of events. outbox_sensor starts it; started by hand without a "
        "batch id it proves the chosen day."
    ),
    run_tags={"dagster/max_runtime": str(MAX_RUNTIME_SECONDS)},
)


class ResumeConfig(dg.Config):
    """Which parked batches are tried again."""

    batch_id: str = Field(default="", description="Only this batch. Empty: all parked ones.")


@literal
@dg.op(out=dg.Out(dg.Nothing), tags={"kind": "postgres"})
def resume_batches(context: dg.OpExecutionContext, config: ResumeConfig, pipeline: PipelineResource):  # type: ignore[no-untyped-def]
    """Let parked batches be requested again at once, with their failures forgotten, and show why each was parked.

    One transaction; for a batch that is not parked it fails with what that batch is. outbox_sensor starts their runs at
    its next tick; a batch whose cause is still there is parked again after the same number of attempts.
    """
    with one_sentence():
        batch_id = pipeline.as_uuid(config.batch_id) if config.batch_id else None
        resumed = resume(pipeline.engine, batch_id, lock_timeout_seconds=pipeline.settings.lock_timeout_seconds)
    for sentence in resumed.sentences:
        context.log.info(sentence)
    context.add_output_metadata({"resumed": len(resumed.batches), "events": resumed.event_count})


@dg.job(
    description=(
        "Try parked batches again. A batch is parked after OUTBOX_MAX_ATTEMPTS failed attempts and then waits for a "
        "person; 'outbox status' shows the last error. Fix what it says first, then run this."
    ),
    run_tags={"dagster/max_runtime": str(MAX_RUNTIME_SECONDS)},
)
def resume_parked_batches() -> None:
    """Resume what its config chooses."""
    resume_batches()
