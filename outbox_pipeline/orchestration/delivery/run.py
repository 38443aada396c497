"""How a run gets its delivery, and what an error in a step becomes: a retry, or the end of the attempt in the ledger.

The first step of a process starts the delivery, the steps after it find it in the resource, and the end of the run
closes it. Invariant: a process has one delivery at most, and nothing that is raised from here has a cause of a driver,
as in `step_failures`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from pydantic import Field

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.errors import InDoubtError, LeaseLostError, OutboxError, TransientError, sentence_of
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.step_failures import failure_of
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import note_error, read_batch
from outbox_pipeline.relay.attempts import end_failed, error_kind, start_requested, start_unrequested
from outbox_pipeline.relay.delivery import Delivery

#: On a run whose batch is of a day that is no partition: the run is then under the nearest day that is one.
RECORDED_ON_TAG = "outbox/recorded_on"

#: Trouble of seconds is waited out inside the run; anything longer is the sensor's next attempt.
RETRIES = dg.RetryPolicy(max_retries=3, delay=1, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


class DeliveryConfig(dg.Config):
    """What a run delivers: one batch, or without a batch id its whole day."""

    batch_id: str | None = Field(
        default=None,
        description="Batch to deliver. Empty: prove every batch of the partition's day, repair what differs.",
    )
    attempt: int | None = Field(
        default=None, description="Attempt the sensor drew for this run. Empty for runs started by hand."
    )
    reload: bool = Field(
        default=False, description="Send the day's batches to ClickHouse again even when they are proven whole."
    )


@contextmanager
def delivering(
    context: dg.OpExecutionContext, config: DeliveryConfig, pipeline: PipelineResource
) -> Iterator[Delivery | None]:
    """Give the op its batch's delivery and sort what goes wrong: retry here, or end the attempt in the ledger.

    Yields None when there is nothing to hold: the run is for a day, or its batch is processed or split already.
    """
    delivery: Delivery | None = None
    try:
        if config.batch_id is not None:
            delivery = _delivery_of(context.run, config.batch_id, config.attempt, pipeline)
        yield delivery
    except LeaseLostError as error:
        raise failure_of(error) from None
    except Exception as error:
        if _can_retry(context, error):
            _note(delivery, error)
            error.__cause__ = None
            # Not by a policy of the op: with one Dagster also tries again what somebody has terminated.
            raise dg.RetryRequested(
                max_retries=RETRIES.max_retries, seconds_to_wait=RETRIES.calculate_delay(context.retry_number + 1)
            ) from error
        _end(delivery, error)
        raise failure_of(error) from None


def _delivery_of(run: dg.DagsterRun, batch_id: str, attempt: int | None, pipeline: PipelineResource) -> Delivery | None:
    """Return this process's delivery of the batch, starting one if needed; None when it is done already.

    A run asked for by the sensor starts the attempt it was asked for. A re-execution, a run started by hand and a
    step in a process of its own take the batch over. Raises LeaseLostError while another run holds it.
    """
    wanted = pipeline.as_uuid(batch_id)
    if pipeline.delivery is not None and pipeline.delivery.lease.batch_id == wanted:
        return pipeline.delivery
    with ledger_transaction(pipeline.engine) as connection:
        batch = read_batch(connection, wanted)
    if batch.status in (BatchStatus.PROCESSED, BatchStatus.SPLIT):
        return None
    is_continued = run.parent_run_id is not None or batch.run_id == run.run_id
    if attempt is None or is_continued:
        return pipeline.keep(start_unrequested(pipeline.stores, wanted, run_id=run.run_id))
    return pipeline.keep(start_requested(pipeline.stores, wanted, attempt, run_id=run.run_id))


def _end(delivery: Delivery | None, error: Exception) -> None:
    if delivery is not None:
        end_failed(delivery, error)


def _can_retry(context: dg.OpExecutionContext, error: Exception) -> bool:
    return isinstance(error, TransientError | InDoubtError) and context.retry_number < RETRIES.max_retries


def _note(delivery: Delivery | None, error: Exception) -> None:
    if delivery is None:
        return
    try:
        with ledger_transaction(delivery.stores.engine) as connection:
            note_error(connection, delivery.lease, error=sentence_of(error), kind=error_kind(error))
    except OutboxError:
        # PostgreSQL itself may be what is down or refuses; the retry will tell.
        return
