"""Statements about processed batches that ClickHouse shows once more: which are due for it, and that it did.

Invariant: a batch stays as it is; only when it was proved last is written.
"""

from collections.abc import Collection
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, and_, func, or_, update

from outbox_pipeline.batches import Batch, BatchStatus
from outbox_pipeline.postgres.leases import IS_KNOWN, read_batches
from outbox_pipeline.postgres.tables import batch

_NOW = func.clock_timestamp()


def note_proved(connection: Connection, batch_ids: Collection[UUID]) -> None:
    """Keep that ClickHouse has just shown exactly the rows of these processed batches."""
    connection.execute(
        update(batch)
        .where(batch.c.batch_id.in_(batch_ids), batch.c.status == BatchStatus.PROCESSED)
        .values(proved_at=_NOW)
    )


def due_for_recheck(connection: Connection, *, delay: timedelta, limit: int) -> list[Batch]:
    """Return up to *limit* batches that took more than one attempt and were not proved again *delay* after marking.

    When a batch with a mark in the future was marked is not known, so it is due once, at once. Pruned ones are not
    among them: nothing could be sent again.
    """
    is_old = and_(batch.c.processed_at < _NOW - delay, batch.c.proved_at < batch.c.processed_at + delay)
    is_ahead = and_(batch.c.processed_at > _NOW, batch.c.proved_at > _NOW)
    return read_batches(
        connection,
        and_(
            batch.c.status == BatchStatus.PROCESSED,
            batch.c.attempt > 1,
            IS_KNOWN,
            or_(is_old, is_ahead),
            batch.c.pruned_at.is_(None),
        ),
        limit=limit,
    )
