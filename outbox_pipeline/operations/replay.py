"""Deliver existing batches again: prove each against ClickHouse, and send only what differs.

Invariant: a batch that ClickHouse shows whole is not touched, one that is in flight or parked is left to its own run,
and one whose events were pruned is proved and never taken from processed. A redelivery that fails leaves its batch
failed, and the normal loop takes it up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Engine

from outbox_pipeline.batches import Batch, BatchStatus
from outbox_pipeline.errors import BatchDataError, LeaseLostError, OutboxError, WitnessError
from outbox_pipeline.postgres import reconcile as ledger
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import read_batch
from outbox_pipeline.postgres.rechecks import due_for_recheck, note_proved
from outbox_pipeline.relay.attempts import end_failed, pruned_sentence, start_unrequested
from outbox_pipeline.relay.delivery import proof_differences
from outbox_pipeline.relay.loop import deliver, require_ready
from outbox_pipeline.relay.results import Marked
from outbox_pipeline.stores import Stores

#: Batches proved again in one go; the next go takes the next ones.
MAX_RECHECKED = 50


class Outcome(StrEnum):
    """What a replay did with one batch."""

    PROVEN = "proven"
    REDELIVERED = "redelivered"
    LEFT_ALONE = "left alone"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True)
class Replayed:
    """One batch after a replay; *detail* says what differed, went wrong, or why it was left alone."""

    batch_id: UUID
    outcome: Outcome
    row_count: int
    detail: str = ""


def batches_of_days(engine: Engine, first_day: date, last_day: date) -> list[Batch]:
    """Return the batches of the UTC days from one to another, both included, in the order they were cut."""
    with ledger_transaction(engine) as connection:
        return ledger.batches_of_days(connection, first_day, last_day)


def replay(
    stores: Stores, batches: list[Batch], *, reload: bool = False, run_id: str | None = None
) -> Iterator[Replayed]:
    """Go through the batches one at a time, yielding what was done with each; with *reload* send all of them again.

    Each is looked up again when its turn comes: what was read before may have been delivered or pruned meanwhile. A
    reload is another generation, so ClickHouse does not take it for a repetition, and older rows are deleted first.
    Raises ConfigurationError, with no batch touched, unless both sides have the schema this code needs.
    """
    require_ready(stores)
    for batch in batches:
        with ledger_transaction(stores.engine) as connection:
            fresh = read_batch(connection, batch.batch_id)
        yield _replay_one(stores, fresh, reload=reload, run_id=run_id)


def rechecks_due(stores: Stores) -> list[Batch]:
    """Return the batches whose second look is due: more than one attempt, marked OUTBOX_RECHECK_SECONDS ago.

    Nothing is known that could still change their rows; this look would notice what is not known.
    """
    with ledger_transaction(stores.engine) as connection:
        return due_for_recheck(connection, delay=stores.settings.recheck, limit=MAX_RECHECKED)


def left_alone(batch: Batch) -> str:
    """Say why a batch that is not processed is left to its own run."""
    if batch.status == BatchStatus.SPLIT:
        return "it was split; its events are delivered in smaller batches"
    return f"it is {batch.status}; its own run delivers it"


def _replay_one(stores: Stores, batch: Batch, *, reload: bool, run_id: str | None) -> Replayed:
    if batch.status != BatchStatus.PROCESSED:
        return Replayed(batch.batch_id, Outcome.LEFT_ALONE, 0, left_alone(batch))
    differences = proof_differences(stores, batch, generation=batch.generation)
    if not differences and (not reload or batch.pruned_at is not None):
        with ledger_transaction(stores.engine) as connection:
            note_proved(connection, [batch.batch_id])
        refused = "it is whole; its events are pruned, so it was not sent again" if reload else ""
        return Replayed(batch.batch_id, Outcome.PROVEN, batch.accepted_count or 0, refused)
    return redeliver(stores, batch, differences or "Reload was asked for.", reload=reload, run_id=run_id)


def redeliver(stores: Stores, batch: Batch, reason: str, *, reload: bool = True, run_id: str | None = None) -> Replayed:
    """Deliver a processed batch again, whatever ClickHouse shows; *reason* becomes the detail of its outcome.

    With *reload* everything is sent under a new generation at once, else only after another look. Raises WitnessError
    when no batch of this ledger may be sent.
    """
    if batch.status == BatchStatus.SPLIT:
        return Replayed(batch.batch_id, Outcome.FAILED, 0, reason)
    if batch.pruned_at is not None:
        return Replayed(batch.batch_id, Outcome.PRUNED, 0, f"{reason}. {pruned_sentence(batch)}")
    try:
        delivery = start_unrequested(stores, batch.batch_id, run_id=run_id)
    except LeaseLostError as error:
        return Replayed(batch.batch_id, Outcome.LEFT_ALONE, 0, str(error))
    except BatchDataError as error:
        return Replayed(batch.batch_id, Outcome.PRUNED, 0, str(error))
    try:
        marked = deliver(delivery, reload=reload)
    except OutboxError as error:
        end_failed(delivery, error)
        if isinstance(error, WitnessError):
            raise
        return Replayed(batch.batch_id, Outcome.FAILED, 0, str(error))
    # A batch that was processed once is never split.
    assert isinstance(marked, Marked)
    return Replayed(batch.batch_id, Outcome.REDELIVERED, marked.accepted_count, reason)
