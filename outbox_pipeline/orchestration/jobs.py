"""The job that delivers one batch or proves one day, and the one that lets parked batches be tried again."""

import dagster as dg
from pydantic import Field

from outbox_pipeline.orchestration.assets import event_log
from outbox_pipeline.orchestration.reconcile import reconciled
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.run_config import literal
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import parked_batches, resume_parked

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

    One transaction. outbox_sensor starts their runs at its next tick; a batch whose cause is still there is parked
    again after the same number of attempts.
    """
    batch_id = pipeline.as_uuid(config.batch_id) if config.batch_id else None
    with ledger_transaction(pipeline.engine) as connection:
        parked = [batch for batch in parked_batches(connection) if batch_id in (None, batch.batch_id)]
        resumed_count = resume_parked(connection, batch_id)
    for batch in parked:
        context.log.info(f"Batch {batch.batch_id}, {batch.event_count} events, was parked: {batch.last_error}")
    context.add_output_metadata({"resumed": resumed_count, "events": sum(batch.event_count for batch in parked)})


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
