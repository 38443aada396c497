"""Statements that delete what was delivered long ago from `outbox.event`, one batch a transaction.

Invariant: a batch's events go in the same transaction that writes `pruned_at`, while the batch's row is locked; from
then on the table itself refuses to let the batch leave `processed`. The ledger's rows stay. What is old is old by the
database's clock and by the caller's `now`: a clock that is ahead for a moment deletes nothing young.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, and_, func, select, tuple_, update

from outbox_pipeline.batches import Batch, BatchStatus
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import batch, quarantined_event

_NOW = func.clock_timestamp()

#: Where a list of batches to prune goes on: the time of the last one's mark, and its id.
Place = tuple[datetime, UUID]


def old_batches(connection: Connection, *, now: datetime, days: int, after: Place | None, limit: int) -> list[Place]:
    """Return up to *limit* batches that were processed *days* ago and still have their events, oldest mark first."""
    statement = select(batch.c.processed_at, batch.c.batch_id).where(_is_old(now, days))
    if after is not None:
        statement = statement.where(tuple_(batch.c.processed_at, batch.c.batch_id) > tuple_(*after))
    rows = connection.execute(statement.order_by(batch.c.processed_at, batch.c.batch_id).limit(limit))
    return [(processed_at, batch_id) for processed_at, batch_id in rows]


def lock_old(connection: Connection, seen: Batch, *, now: datetime, days: int) -> bool:
    """Lock a batch that is as it was *seen*: processed, old, not pruned, and not sent again since.

    False when it is not, or while a replay or another prune holds its row; no lock is waited for.
    """
    statement = select(batch.c.batch_id).where(
        batch.c.batch_id == seen.batch_id,
        batch.c.attempt == seen.attempt,
        batch.c.generation == seen.generation,
        _is_old(now, days),
    )
    return connection.scalar(statement.with_for_update(skip_locked=True)) is not None


def position_conflict(connection: Connection, batch_id: UUID) -> str:
    """Say where else one of a processed batch's positions is; empty when nowhere, as it must be."""
    return connection.scalar(query("position_conflict"), {"batch_id": batch_id}) or ""


def prune_events(connection: Connection, batch_id: UUID) -> int:
    """Delete the events of a batch that the caller has locked, write when, and return how many there were."""
    deleted = connection.execute(query("delete_events"), {"batch_id": batch_id}).rowcount
    connection.execute(update(batch).where(batch.c.batch_id == batch_id).values(pruned_at=_NOW))
    return deleted


def prune_discarded(connection: Connection, *, now: datetime, days: int, limit: int) -> tuple[int, int]:
    """Delete up to *limit* events discarded or replaced *days* ago; return how many, and how many were still there."""
    row = connection.execute(query("delete_discarded"), {"now": now, "days": days, "limit": limit}).one()
    return row.discarded_count, row.event_count


def count_old_discarded(connection: Connection, *, now: datetime, days: int) -> int:
    """Return how many discarded and replaced events `prune_discarded` would take. Changes nothing."""
    statement = select(func.count()).where(
        quarantined_event.c.status.in_(["discarded", "replaced"]),
        quarantined_event.c.pruned_at.is_(None),
        quarantined_event.c.resolved_at < func.least(_NOW, now) - timedelta(days=days),
    )
    return connection.scalar(statement) or 0


def oldest_kept(connection: Connection) -> datetime | None:
    """Return when the oldest event of a batch that is not pruned was recorded, None without such a batch."""
    processed = select(func.min(batch.c.oldest_recorded_at)).where(
        batch.c.status == BatchStatus.PROCESSED, batch.c.pruned_at.is_(None)
    )
    others = select(func.min(batch.c.oldest_recorded_at)).where(batch.c.status != BatchStatus.PROCESSED)
    return connection.scalar(select(func.least(processed.scalar_subquery(), others.scalar_subquery())))


def which_pruned(connection: Connection, batch_ids: Collection[UUID]) -> set[UUID]:
    """Return those of the batches whose events were pruned."""
    statement = select(batch.c.batch_id).where(batch.c.batch_id.in_(batch_ids), batch.c.pruned_at.is_not(None))
    return set(connection.execute(statement).scalars())


def _is_old(now: datetime, days: int) -> ColumnElement[bool]:
    since = func.least(_NOW, now) - timedelta(days=days)
    return and_(
        batch.c.status == BatchStatus.PROCESSED,
        batch.c.pruned_at.is_(None),
        batch.c.processed_at < since,
        batch.c.oldest_recorded_at < since,
    )
