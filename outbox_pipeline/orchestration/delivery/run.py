"""What every op of a delivery shares: its config, and how an error becomes a retry, a failure or a ledger note.

Invariant: Dagster stores and shows an error with all its causes, so nothing is raised from here that has one, and of a
foreign error only kind and place are told.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from pydantic import Field

from outbox_pipeline.errors import InDoubtError, LeaseLostError, OutboxError, TransientError, sentence_of
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import note_error
from outbox_pipeline.relay.attempts import end_failed, error_kind
from outbox_pipeline.relay.delivery import Delivery

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

    Yields None when there is nothing to hold: the run is for a day, or its batch is processed already.
    """
    delivery: Delivery | None = None
    try:
        if config.batch_id is not None:
            delivery = pipeline.delivery(config.batch_id, config.attempt, context.run)
        yield delivery
    except LeaseLostError as error:
        raise failure_of(error) from None
    except Exception as error:
        if _can_retry(context, error):
            _note(delivery, error)
            raise error from None
        _end(delivery, error)
        raise failure_of(error) from None


@contextmanager
def one_sentence() -> Iterator[None]:
    """Fail the run with one sentence, and without a retry, where the block fails."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - it fails the run, in words that may be stored
        raise failure_of(error) from None


def failure_of(error: Exception) -> dg.Failure:
    """Return the failure of a step, with the frames of *error* and one sentence about it."""
    failure = dg.Failure(description=sentence_of(error), allow_retries=False)
    return failure.with_traceback(error.__traceback__)


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
