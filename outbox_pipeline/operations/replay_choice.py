"""Choose the batches of a replay: by days, by the type of their events, or by id.

A batch is the unit of delivery, so a choice by type means whole batches that contain such events.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from outbox_pipeline.batches import Batch, BatchStatus
from outbox_pipeline.clickhouse.reconcile import shown_types
from outbox_pipeline.days import ALL_DAYS, Window
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import read_batch
from outbox_pipeline.postgres.reconcile import batches_of_days, batches_with_type
from outbox_pipeline.stores import Stores

_MAX_EVENTS = 1_000_000


@dataclass(frozen=True)
class Choice:
    """Which batches are meant: all that fit every condition."""

    window: Window = ALL_DAYS
    event_type: str | None = None
    batch_id: UUID | None = None


@dataclass(frozen=True)
class Chosen:
    """What a choice amounts to, before anything is done."""

    batches: int
    events: int
    days: int
    pruned_batches: int
    unprocessed_batches: int


def choose(stores: Stores, choice: Choice) -> list[Batch]:
    """Return the batches in the order they were cut. Raises ConfigurationError when one that is named is unknown."""
    with ledger_transaction(stores.engine) as connection:
        if choice.batch_id is not None:
            read_batch(connection, choice.batch_id)
        first_day, last_day = choice.window.first_day, choice.window.last_day
        batches = batches_of_days(connection, first_day, last_day, batch_id=choice.batch_id)
    if choice.event_type is None:
        return batches
    wanted = set(_with_type(stores, batches, choice.event_type))
    return [batch for batch in batches if batch.batch_id in wanted]


def count(batches: Sequence[Batch]) -> Chosen:
    """Count what would be replayed."""
    return Chosen(
        batches=len(batches),
        events=sum(batch.event_count if batch.accepted_count is None else batch.accepted_count for batch in batches),
        days=len({batch.recorded_on for batch in batches}),
        pruned_batches=sum(batch.pruned_at is not None for batch in batches),
        unprocessed_batches=sum(batch.status != BatchStatus.PROCESSED for batch in batches),
    )


def pieces(batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Yield the batches in groups of about a million events, which one statement reads in a few seconds."""
    piece: list[Batch] = []
    for batch in batches:
        piece.append(batch)
        if sum(item.event_count for item in piece) >= _MAX_EVENTS:
            yield piece
            piece = []
    if piece:
        yield piece


def _with_type(stores: Stores, batches: Sequence[Batch], event_type: str) -> Iterator[UUID]:
    # Pruned events are known to ClickHouse only; of the others it may show less than there is.
    for piece in pieces([batch for batch in batches if batch.pruned_at is None]):
        with ledger_transaction(stores.engine) as connection:
            yield from batches_with_type(connection, [batch.batch_id for batch in piece], event_type)
    for piece in pieces([batch for batch in batches if batch.pruned_at is not None]):
        yield from (shown.batch_id for shown in shown_types(stores.client, piece) if shown.event_type == event_type)
