"""A batch's life as data: its statuses, the moves between them, and what it must show in ClickHouse.

The ledger table refuses impossible rows; the moves here are the ones the code makes, and a test walks every pair.
"""

from dataclasses import asdict, dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Self
from uuid import UUID


class BatchStatus(StrEnum):
    """Where a batch is in its life."""

    CUT = "cut"
    REQUESTED = "requested"
    DELIVERING = "delivering"
    FAILED = "failed"
    PARKED = "parked"
    PROCESSED = "processed"


#: Every allowed move and the sentence that explains it; `docs/architecture.md` draws this table.
MOVES: dict[tuple[BatchStatus, BatchStatus], str] = {
    (BatchStatus.CUT, BatchStatus.REQUESTED): "a run is asked for and an attempt number drawn",
    (BatchStatus.CUT, BatchStatus.DELIVERING): "a run started by hand takes the batch directly",
    (BatchStatus.REQUESTED, BatchStatus.DELIVERING): "the requested run starts and takes the lease",
    (
        BatchStatus.REQUESTED,
        BatchStatus.REQUESTED,
    ): "the requested run never started or has ended; another is asked for",
    (BatchStatus.REQUESTED, BatchStatus.PARKED): "too many requested runs never started",
    (
        BatchStatus.DELIVERING,
        BatchStatus.PROCESSED,
    ): "ClickHouse shows exactly the batch's rows and it is marked",
    (
        BatchStatus.DELIVERING,
        BatchStatus.FAILED,
    ): "the attempt ended in an error; the next one waits its backoff",
    (
        BatchStatus.DELIVERING,
        BatchStatus.DELIVERING,
    ): "a heartbeat, the same run's next step, or another run takes over an expired lease",
    (
        BatchStatus.DELIVERING,
        BatchStatus.REQUESTED,
    ): "the run went silent past its lease; another is asked for",
    (BatchStatus.DELIVERING, BatchStatus.PARKED): "the last allowed attempt failed, or went silent",
    (BatchStatus.FAILED, BatchStatus.REQUESTED): "the backoff is over and another run is asked for",
    (BatchStatus.FAILED, BatchStatus.PARKED): "the limit of attempts was lowered to its failures, or below",
    (BatchStatus.FAILED, BatchStatus.DELIVERING): "somebody re-executes the failed run",
    (
        BatchStatus.PARKED,
        BatchStatus.FAILED,
    ): "somebody fixed the cause and resumes the batch; it is due at once",
    (BatchStatus.PARKED, BatchStatus.DELIVERING): "somebody re-executes the parked run",
    (BatchStatus.PROCESSED, BatchStatus.DELIVERING): "a replay found ClickHouse different and delivers again",
}

#: Each run of a batch has its id under this tag, in Dagster and in the addresses of its pages.
BATCH_ID_TAG = "outbox/batch_id"

#: The highest position a sequence can draw.
LAST_POSITION = 2**63 - 1

#: Statuses in which the batch's events are on their way.
IN_FLIGHT = frozenset({BatchStatus.CUT, BatchStatus.REQUESTED, BatchStatus.DELIVERING, BatchStatus.FAILED})


def can_move(before: BatchStatus, after: BatchStatus) -> bool:
    """Tell whether a batch may go from *before* to *after*."""
    return (before, after) in MOVES


@dataclass(frozen=True)
class Proof:
    """What exactly a batch's rows in ClickHouse add up to.

    Sums and hashes are modulo 2**64, so both sides may add in any order; `context_sum` adds the CRC-32 of each context.
    A row that is added, missing or doubled changes it, and so does one whose id, position, time or context is altered.
    Type, environment and version of an event are not in it.
    """

    row_count: int
    id_sum: int
    id_xor_high: int
    id_xor_low: int
    position_sum: int
    time_sum: int
    context_sum: int

    def to_json(self) -> dict[str, int]:
        """Return the fields as the ledger stores them."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, int]) -> Self:
        """Read what `to_json` wrote."""
        return cls(**stored)

    def plus(self, other: Self) -> Self:
        """Return the proof of both row sets together; they must have no row in common."""
        return type(self)(
            row_count=self.row_count + other.row_count,
            id_sum=(self.id_sum + other.id_sum) % 2**64,
            id_xor_high=self.id_xor_high ^ other.id_xor_high,
            id_xor_low=self.id_xor_low ^ other.id_xor_low,
            position_sum=(self.position_sum + other.position_sum) % 2**64,
            time_sum=(self.time_sum + other.time_sum) % 2**64,
            context_sum=(self.context_sum + other.context_sum) % 2**64,
        )

    def differences(self, found: "Proof") -> str:
        """Say in words how *found* differs from this expectation; empty when it does not."""
        mine, theirs = asdict(self), asdict(found)
        return ", ".join(
            f"{name} {theirs[name]} instead of {mine[name]}" for name in mine if mine[name] != theirs[name]
        )


@dataclass(frozen=True)
class Lease:
    """The right to write to the ledger about one batch: named in each such write, refused once outdated."""

    batch_id: UUID
    attempt: int
    holder: str


@dataclass(frozen=True)
class LedgerIdentity:
    """Which ledger this is, and the number under which it was adopted by its present instance, 0 for never."""

    ledger_id: UUID
    floor: int


@dataclass(frozen=True)
class Batch:
    """One ledger row, without its positions.

    `foreign_positions` are half-open stretches in order, empty unless the batch was adopted from the old instance.
    `cut_number` is None in a batch of an earlier version until its next attempt.
    """

    batch_id: UUID
    recorded_on: date
    event_count: int
    context_bytes: int
    first_position: int
    last_position: int
    oldest_recorded_at: datetime
    status: BatchStatus
    attempt: int
    failures: int
    transient_failures: int
    generation: int
    rejected: dict[int, list[str]] | None
    proof: Proof | None
    accepted_count: int | None
    rejected_count: int | None
    last_error: str | None
    run_id: str | None
    processed_at: datetime | None
    proved_at: datetime | None
    pruned_at: datetime | None
    foreign_positions: tuple[tuple[int, int], ...]
    cut_number: int | None = None

    @property
    def is_frozen(self) -> bool:
        """True once the rejected set and the proof are in the ledger."""
        return self.proof is not None


@dataclass(frozen=True)
class HeldType:
    """What outbox.event holds of one batch and type; `late_count` of them were recorded after the batch was cut."""

    batch_id: UUID
    event_type: str
    event_count: int
    position_sum: int
    late_count: int


@dataclass(frozen=True)
class BatchRequest:
    """A batch that a run is now asked to deliver, under this attempt number."""

    batch_id: UUID
    attempt: int
    recorded_on: date
    event_count: int
