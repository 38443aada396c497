"""Parked batches in the UI: the job that lets them be tried again."""

import dagster as dg
from pydantic import Field

from outbox_pipeline.operations.resume import resume
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.run_config import literal
from outbox_pipeline.orchestration.run_limits import statements_seconds
from outbox_pipeline.orchestration.run_tags import max_runtime
from outbox_pipeline.orchestration.shared_settings import settings_tag
from outbox_pipeline.orchestration.step_failures import one_sentence
from outbox_pipeline.settings import load_settings


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
        "Try parked batches again. A batch is parked after OUTBOX_MAX_ATTEMPTS failures of its own, or a day of a "
        "server's trouble, and then waits for a person; 'outbox status' shows the last error. Fix what it says first, "
        "then run this."
    ),
    run_tags=max_runtime(statements_seconds(8)) | settings_tag(load_settings()),
)
def resume_parked_batches() -> None:
    """Resume what its config chooses."""
    resume_batches()
