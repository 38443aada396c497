"""Let parked batches be tried again: the procedure of `outbox resume` and of the job `resume_parked_batches`.

Invariant: in one transaction every batch that is meant becomes due at once, or nothing changes and the error says why.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Engine

from outbox_pipeline.batches import Batch, BatchStatus
from outbox_pipeline.counts import counted
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import read_batch, resume_parked
from outbox_pipeline.postgres.schema import check_version


@dataclass(frozen=True)
class Resumed:
    """The batches that are tried again, those with the oldest events first."""

    batches: tuple[Batch, ...]

    @property
    def event_count(self) -> int:
        """How many events these batches have."""
        return sum(batch.event_count for batch in self.batches)

    @property
    def sentences(self) -> list[str]:
        """Say of each batch what it was parked for."""
        return [
            f"Batch {one.batch_id}, {counted(one.event_count, 'event')}, was parked: "
            f"{one.last_error or 'no error is kept.'}"
            for one in self.batches
        ]


def resume(engine: Engine, batch_id: UUID | None = None, *, lock_timeout_seconds: float) -> Resumed:
    """Make parked batches, or the one named, due at once and count their failures from zero.

    Without an id no batch need be parked. Raises ConfigurationError for an id that no batch has or whose batch is not
    parked; the sentence says what happens to it without a resume.
    """
    with ledger_transaction(engine, lock_timeout_seconds=lock_timeout_seconds) as connection:
        check_version(connection)
        batches = resume_parked(connection, batch_id)
        if batch_id is not None and not batches:
            raise ConfigurationError(_not_parked(read_batch(connection, batch_id)))
    return Resumed(tuple(batches))


def _not_parked(batch: Batch) -> str:
    if batch.status == BatchStatus.PROCESSED:
        return f"Batch {batch.batch_id} is processed: 'outbox replay --batch {batch.batch_id}' proves it once more."
    if batch.status == BatchStatus.SPLIT:
        return f"Batch {batch.batch_id} was split: its events are delivered in smaller batches, so wait for those."
    if batch.status == BatchStatus.PARKED:
        return f"Batch {batch.batch_id} was parked just now, while this looked: run the resume again."
    return f"Batch {batch.batch_id} is {batch.status}, not parked: it is delivered without a resume, so wait for it."
