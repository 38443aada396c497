"""The state of the pipeline in one look at the ledger.

ClickHouse is not asked: the ledger marks an event processed only on ClickHouse's own proof.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Engine

from outbox_pipeline.postgres.conditions import ledger_problem, read_conditions
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.overview import read_overview
from outbox_pipeline.postgres.schema import check_version

#: Pending events are counted up to here; counting on would only make a slow answer slower.
PENDING_LIMIT = 1_000_000


@dataclass(frozen=True)
class Status:
    """How many events are where, how old the oldest undelivered one is, and what went wrong last.

    `pending`: committed and in no batch yet, `pending_is_at_least` when there may be more than were counted.
    `in_flight`: in a batch that is cut, requested, delivering or failed. `parked`: in a batch that needs a person.
    `processed`: proved to be in ClickHouse. `quarantined`: refused and held.
    `lag_seconds`: age of the oldest pending, in flight or parked event, 0 without any; a replay does not count. Where
    one of them was recorded in the future, how far ahead that is, if it is more: its age is not known.
    `future`: how many of them were, those in batches by the batch's oldest event; `future_seconds`: how far at most,
    which is until `future_until`.
    `oldest_gap_holders`: transactions that may still commit an event at a position that was passed over.
    `last_error`: what the most recently tried open batch failed with.
    `split_batches`: how many batches were ever split, because ClickHouse lacked the memory for them.
    `problem`: the sentence for what keeps the ledger from being worked on, None when it is sound.
    """

    pending: int
    pending_is_at_least: bool
    in_flight: int
    parked: int
    processed: int
    quarantined: int
    lag_seconds: float
    future: int
    future_seconds: float
    future_until: datetime | None
    open_batches: dict[str, int]
    gaps: int
    oldest_gap_at: datetime | None
    oldest_gap_holders: list[str]
    last_error: str | None
    last_error_kind: str | None
    last_error_batch_id: UUID | None
    last_processed_at: datetime | None
    split_batches: int = 0
    problem: str | None = None

    @property
    def undelivered(self) -> int:
        """Committed events that are neither processed nor quarantined."""
        return self.pending + self.in_flight + self.parked

    @property
    def is_ahead(self) -> bool:
        """True when the lag is that of an event recorded in the future."""
        # The server read its clock once for each of the two.
        return self.future > 0 and self.lag_seconds - self.future_seconds < 1


def read_status(engine: Engine) -> Status:
    """Return the state of the outbox in one snapshot.

    Raises ConfigurationError when the schema is not this code's, TransientError when PostgreSQL does not answer.
    """
    with ledger_transaction(engine) as connection:
        check_version(connection)
        overview = read_overview(connection, limit=PENDING_LIMIT)
        return Status(**overview, problem=ledger_problem(read_conditions(connection)))
