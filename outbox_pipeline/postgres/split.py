"""Statements of splitting: a batch gives its positions back, and the cuts after it take half of what it had at most.

Invariant: positions leave a batch and become unclaimed in one transaction, under the lock on `unclaimed`.
"""

import json
from dataclasses import dataclass

from sqlalchemy import Connection, cast, func, select
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE

from outbox_pipeline.batches import Lease, Proof
from outbox_pipeline.errors import LeaseLostError
from outbox_pipeline.postgres.cut import lock_unclaimed
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import batch


@dataclass(frozen=True)
class Half:
    """Half of the events and of the bytes of the smallest batch that once had some of these positions."""

    max_events: int
    max_bytes: int


def split_batch(connection: Connection, lease: Lease) -> int:
    """Move the batch to split and its positions to `unclaimed`; return how many events it had.

    Call it only behind a fence, after ClickHouse has shown no row of the batch. Raises LeaseLostError when the lease is
    not ours, or the batch is none that may be split.
    """
    lock_unclaimed(connection)
    named = {"batch_id": lease.batch_id, "attempt": lease.attempt, "holder": lease.holder}
    nothing = json.dumps(Proof.of_nothing().to_json())
    event_count = connection.scalar(query("split_batch"), {**named, "nothing": nothing})
    if event_count is None:
        raise LeaseLostError(lease.batch_id, lease.attempt, reason="it may not be split any more")
    return int(event_count)


def half_of_former(connection: Connection, positions: str) -> Half | None:
    """Return what a batch of these positions may hold, None where none of them was in a batch that was split."""
    statement = select(func.min(batch.c.event_count), func.min(batch.c.context_bytes)).where(
        batch.c.former_positions.is_not(None),
        batch.c.former_positions.op("&&")(cast(positions, INT8MULTIRANGE)),
    )
    event_count, context_bytes = connection.execute(statement).one()
    return None if event_count is None else Half((event_count + 1) // 2, (context_bytes + 1) // 2)
