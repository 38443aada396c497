"""A batch's life as data: its statuses, the moves between them, and what it must show in ClickHouse.

The ledger table refuses impossible rows. The code makes each of the moves here and no other: the test databases record
every move, and a run of the tests compares (`tests/fixtures/moves.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Self
from uuid import UUID

from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.event_schema import PROOF_VERSION, proved_columns


class BatchStatus(StrEnum):
    """Where a batch is in its life."""

    CUT = "cut"
    REQUESTED = "requested"
    DELIVERING = "delivering"
    FAILED = "failed"
    PARKED = "parked"
    PROCESSED = "processed"
    SPLIT = "split"


#: Every allowed move and the sentence that explains it; `docs/architecture.md` draws this table.
MOVES: dict[tuple[BatchStatus, BatchStatus], str] = {
    (BatchStatus.CUT, BatchStatus.REQUESTED): "a run is asked for and an attempt number drawn",
    (BatchStatus.CUT, BatchStatus.DELIVERING): "a run started by hand takes the batch directly",
    (
        BatchStatus.CUT,
        BatchStatus.PROCESSED,
    ): "a batch of the old instance is adopted, and ClickHouse shows exactly its rows",
    (BatchStatus.REQUESTED, BatchStatus.DELIVERING): "the requested run starts and takes the lease",
    (
        BatchStatus.REQUESTED,
        BatchStatus.REQUESTED,
    ): "the requested run never started or has ended; another is asked for",
    (BatchStatus.REQUESTED, BatchStatus.PARKED): "for more than a day no requested run started",
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
    (
        BatchStatus.DELIVERING,
        BatchStatus.PARKED,
    ): "the last allowed attempt failed or went silent, or a view behind the log refuses what the log has",
    (
        BatchStatus.DELIVERING,
        BatchStatus.SPLIT,
    ): "ClickHouse lacks the memory for it and has nothing of it; its events are pending again",
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


#: Kinds of failure, in the ledger's words, that a server's recovery ends.
PASSING_KINDS = ("transient", "in_doubt")

#: Attempts in a row whose insert ClickHouse lacked the memory for; the next one splits the batch.
MEMORY_FAILURES = 3


#: What is said of a batch whose proof this release cannot read; in the ledger and by the commands that ask for it.
NEWER_PROOF = (
    "A newer release of outbox-pipeline froze this batch, with a proof that this release cannot read: update "
    "outbox-pipeline here; until then the batch is left as it is."
)

#: The sums that every version of the proof has.
_SUMS = ("row_count", "id_sum", "id_xor_high", "id_xor_low", "position_sum", "time_sum", "context_sum")


@dataclass(frozen=True)
class Proof:
    """What exactly a batch's rows in ClickHouse add up to.

    Sums and hashes are modulo 2**64, so both sides may add in any order; `context_sum` adds the CRC-32 of each context.
    A row that is added, missing or doubled changes it, and so does any altered value of a sent column.
    `columns` has a sum for each column whose values the version ties to their rows: a value, of texts the CRC-32, times
    the hash of the row's id. So two rows that have swapped their values change it too. Version 1 has none: a batch that
    was frozen with it is compared by the seven sums alone, for ever.
    """

    row_count: int
    id_sum: int
    id_xor_high: int
    id_xor_low: int
    position_sum: int
    time_sum: int
    context_sum: int
    columns: Mapping[str, int] = field(default_factory=dict)
    version: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the fields as the ledger stores them."""
        sums = {name: getattr(self, name) for name in _SUMS}
        return sums if self.version == 1 else {"version": self.version, **sums, "columns": dict(self.columns)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote, also that of a newer release, as far as every version is the same."""
        sums = {name: stored[name] for name in _SUMS}
        return cls(**sums, columns=stored.get("columns", {}), version=stored.get("version", 1))

    @classmethod
    def of_nothing(cls) -> Self:
        """Return what no rows add up to."""
        columns = {column.name: 0 for column in proved_columns(PROOF_VERSION)}
        return cls(**dict.fromkeys(_SUMS, 0), columns=columns, version=PROOF_VERSION)

    def require_known(self) -> None:
        """Raise ConfigurationError when a newer release made this proof: nothing is compared or sent by it here."""
        if self.version > PROOF_VERSION:
            raise ConfigurationError(NEWER_PROOF)

    def as_of(self, version: int) -> Self:
        """Return what an earlier version says of the same rows."""
        names = {column.name for column in proved_columns(version)}
        columns = {name: value for name, value in self.columns.items() if name in names}
        return replace(self, columns=columns, version=min(version, self.version))

    def plus(self, other: Self) -> Self:
        """Return the proof of both row sets together, by the older of their versions; they have no row in common."""
        return type(self)(
            row_count=self.row_count + other.row_count,
            id_sum=(self.id_sum + other.id_sum) % 2**64,
            id_xor_high=self.id_xor_high ^ other.id_xor_high,
            id_xor_low=self.id_xor_low ^ other.id_xor_low,
            position_sum=(self.position_sum + other.position_sum) % 2**64,
            time_sum=(self.time_sum + other.time_sum) % 2**64,
            context_sum=(self.context_sum + other.context_sum) % 2**64,
            columns={
                name: (value + other.columns[name]) % 2**64
                for name, value in self.columns.items()
                if name in other.columns
            },
            version=min(self.version, other.version),
        )

    def differences(self, found: "Proof") -> str:
        """Say in words how *found* differs from this expectation, by its version; empty when it does not.

        Columns are named where the rows are all there: else each of them differs. Raises ConfigurationError when a
        newer release made the expectation.
        """
        self.require_known()
        sums = [
            f"{name} {getattr(found, name)} instead of {getattr(self, name)}"
            for name in _SUMS
            if getattr(self, name) != getattr(found, name)
        ]
        altered = [f"{name} altered" for name in self.altered(found)] if self.has_rows_of(found) else []
        return ", ".join(sums + altered)

    def altered(self, found: "Proof") -> list[str]:
        """Return the columns of this expectation that add up to something else in *found*."""
        return [name for name, value in self.columns.items() if value != found.columns[name]]

    def has_rows_of(self, found: "Proof") -> bool:
        """Tell whether both are of rows with the same ids."""
        names = ("row_count", "id_sum", "id_xor_high", "id_xor_low")
        return all(getattr(self, name) == getattr(found, name) for name in names)


@dataclass(frozen=True)
class Lease:
    """The right to write to the ledger about one batch: named in each such write, refused once outdated."""

    batch_id: UUID
    attempt: int
    holder: str


@dataclass(frozen=True)
class LedgerIdentity:
    """Which ledger this is, and the number under which it was adopted by its present instance, 0 for never.

    `open_numbers` are those of its batches that were not processed when this was read. `has_elsewhere`: it keeps ids of
    events that another instance delivered.
    """

    ledger_id: UUID
    floor: int
    open_numbers: tuple[int, ...] = ()
    has_elsewhere: bool = False


@dataclass(frozen=True)
class MarkedBatch:
    """What is told of a batch when it is marked as processed; `foreign_positions` as in `Batch`.

    Each mark of a batch is one of these: `processed_at` tells them apart.
    """

    batch_id: UUID
    processed_at: datetime
    accepted_count: int
    rejected_count: int
    first_position: int
    last_position: int
    generation: int
    foreign_positions: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Batch:
    """One ledger row, without its positions.

    `foreign_positions` are half-open stretches in order, empty unless the batch was adopted from the old instance.
    `cut_number` is None in a batch of an earlier version until its next attempt. `answered_generation` is the one whose
    insert ClickHouse answered with an error, `may_resend` that a person has resumed the batch since.
    `memory_failures` are the latest attempts in a row whose insert ClickHouse lacked the memory for;
    `refused_generations` how many generations were begun because ClickHouse refused events: it had taken nothing then.
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
    answered_generation: int | None = None
    may_resend: bool = False
    memory_failures: int = 0
    refused_generations: int = 0

    @property
    def is_answered(self) -> bool:
        """True while the latest insert of the current generation is one that ClickHouse answered with an error."""
        return self.answered_generation == self.generation

    @property
    def is_too_large(self) -> bool:
        """True for a batch whose next attempt splits it, if ClickHouse still has nothing of it."""
        # A generation was begun because ClickHouse had taken the one before, or because it had refused it.
        was_never_taken = self.processed_at is None and self.generation == self.refused_generations
        is_divisible = self.event_count > 1 and not self.foreign_positions
        return self.memory_failures >= MEMORY_FAILURES and was_never_taken and is_divisible

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
