"""Split a batch that ClickHouse lacks the memory for: give its events back, to be cut into smaller batches.

Invariant: an event is in ClickHouse under one batch alone. So a batch is split only by an attempt above all that could
have sent it, when the fence of that attempt is written, no insert of the batch runs, and no row of it is there, of
whatever generation: what was sent before is refused when it arrives. What ClickHouse ever took is never split.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection

from outbox_pipeline.batches import Batch, BatchStatus, Lease
from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.proof import proof_in_clickhouse
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.logs import log
from outbox_pipeline.postgres.leases import SPLIT_ATTEMPTS
from outbox_pipeline.postgres.split import split_batch
from outbox_pipeline.relay.points import Point, announce
from outbox_pipeline.relay.servers import several_problem


@dataclass(frozen=True)
class Split:
    """A batch whose events are pending again."""

    batch_id: UUID
    event_count: int

    @property
    def sentence(self) -> str:
        """Say what was done, and what keeps it from happening again."""
        return (
            f"Batch {self.batch_id} was split: ClickHouse lacked the memory for its {self.event_count:,} events, has "
            "none of them, and gets them in batches of half the size. Give it more memory, or lower "
            "OUTBOX_BATCH_MAX_EVENTS and OUTBOX_BATCH_MAX_BYTES."
        )


def split_if_absent(
    client: EventLogClient, transaction: Callable[[], AbstractContextManager[Connection]], lease: Lease, batch: Batch
) -> Split | None:
    """Split a batch that is too large, behind the fence of *lease*; None where rows of it are there, or it is not.

    One that is split already was split by this attempt, whose commit was not answered.

    Raises LeaseLostError when another attempt has it, ConfigurationError when several servers answer in turn.
    """
    if batch.status == BatchStatus.SPLIT:
        return Split(batch.batch_id, batch.event_count)
    if not batch.is_too_large or lease.attempt <= SPLIT_ATTEMPTS:
        return None
    problem = several_problem(client)
    if problem is not None:
        # What one of them does not have another may.
        raise ConfigurationError(problem)
    found, foreign_count = proof_in_clickhouse(client, batch, generation=batch.generation)
    if found.row_count or foreign_count:
        return None
    with transaction() as connection:
        event_count = split_batch(connection, lease)
        announce(Point.SPLITTING)
    announce(Point.SPLIT)
    log().warning("batch_split", batch_id=str(batch.batch_id), events=event_count)
    return Split(batch.batch_id, event_count)


def memory_sentence(batch: Batch, said: str) -> str:
    """Say that ClickHouse lacked the memory for a batch's insert, and what follows; *said* are the words about it."""
    if batch.event_count == 1:
        return f"{said} The batch is one event, which cannot be split: it waits for more memory."
    if batch.processed_at is not None or batch.generation != batch.refused_generations:
        return f"{said} ClickHouse has taken the batch before, so it is not split: it waits for more memory."
    return f"{said} After three such attempts in a row the batch is split, if ClickHouse has no row of it."
