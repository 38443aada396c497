"""Statements on the numbers of batches, which ClickHouse keeps as a witness of the ledger.

Invariant: a number and its batch are in the ledger, committed, before ClickHouse sees either.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import Connection, func, select

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.postgres.cut import lock_unclaimed
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import batch, unclaimed

#: ClickHouse keeps at least the cuts of so many numbers below the last.
KEPT_NUMBERS = 10_000


@dataclass(frozen=True)
class KnownCuts:
    """What the ledger says of some numbers: which batch has one, and the number of its latest adoption, 0 for none."""

    floor: int
    batches: dict[int, UUID]


@dataclass(frozen=True)
class DeliveredCut:
    """A number whose batch was delivered, and the batch's UTC day."""

    cut_number: int
    batch_id: UUID
    recorded_on: date


def draw_number(connection: Connection, batch_id: UUID) -> int:
    """Return the batch's number, which is given now to one that an earlier version has cut."""
    lock_unclaimed(connection)
    number = connection.scalar(select(batch.c.cut_number).where(batch.c.batch_id == batch_id))
    if number is None:
        number = connection.execute(query("draw_number"), {"batch_id": batch_id}).scalar_one()
    return int(number)


def read_cuts(connection: Connection, numbers: Collection[int]) -> KnownCuts:
    """Return which of these numbers have a batch here. Changes nothing; a statement after ClickHouse was read."""
    known = batch.c.cut_number == func.any(sorted(set(numbers)))
    rows = connection.execute(
        select(unclaimed.c.witness_floor, batch.c.cut_number, batch.c.batch_id).outerjoin_from(unclaimed, batch, known)
    ).all()
    return KnownCuts(rows[0].witness_floor, {row.cut_number: row.batch_id for row in rows if row.cut_number})


def read_delivered_cuts(connection: Connection) -> Sequence[DeliveredCut]:
    """Return the numbers, of the last KEPT_NUMBERS, whose batches were sent and could be sent again."""
    last = select(unclaimed.c.last_cut_number).scalar_subquery()
    statement = select(batch.c.cut_number, batch.c.batch_id, batch.c.recorded_on).where(
        batch.c.cut_number > last - KEPT_NUMBERS,
        batch.c.status == BatchStatus.PROCESSED,
        batch.c.accepted_count > 0,
        batch.c.pruned_at.is_(None),
    )
    return [DeliveredCut(*row) for row in connection.execute(statement)]


def first_kept(connection: Connection) -> int:
    """Return the number below which ClickHouse need not keep cuts: none below it is of an open batch."""
    open_number = select(func.min(batch.c.cut_number)).where(batch.c.status != BatchStatus.PROCESSED)
    lowest = func.least(unclaimed.c.last_cut_number - KEPT_NUMBERS + 1, open_number.scalar_subquery())
    return max(0, int(connection.execute(select(lowest)).scalar_one()))
