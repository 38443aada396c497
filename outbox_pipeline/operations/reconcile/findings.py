"""What a reconciliation finds, as numbers and as sentences for a person."""

from dataclasses import asdict, dataclass
from datetime import date
from functools import reduce
from uuid import UUID

from outbox_pipeline.batches import Batch, BatchStatus, Proof
from outbox_pipeline.counts import counted
from outbox_pipeline.days import UntrackedEvents, Window

_PRUNED = "its events are pruned, so it cannot be sent again: restore its rows in ClickHouse from a backup"


@dataclass(frozen=True)
class Difference:
    """One processed batch that ClickHouse does not show as the ledger expects.

    `missing`: events without a row. `doubled`: rows that stand there once more. `misplaced`: rows of positions that
    are not the batch's. `other_generation`: rows of an earlier or later sending. `altered`: what was changed in rows
    that are all there. The five are known once the batch is examined; `found` minus `expected` always is. `remedy` says
    of a batch that was split what may be done with rows of it.
    """

    batch: Batch
    expected: int
    found: int
    is_examined: bool = False
    missing: int = 0
    doubled: int = 0
    misplaced: int = 0
    other_generation: int = 0
    altered: str = ""
    remedy: str = ""

    @property
    def day(self) -> date:
        """The batch's UTC day."""
        return self.batch.recorded_on

    @property
    def is_pruned(self) -> bool:
        """True when PostgreSQL no longer holds the events."""
        return self.batch.pruned_at is not None and not self.is_split

    @property
    def is_split(self) -> bool:
        """True when the batch was split, after which ClickHouse has no row of it."""
        return self.batch.status == BatchStatus.SPLIT

    @property
    def sentence(self) -> str:
        """Say what differs, in the numbers that are known, and the next step where it is not taken here."""
        counted = {
            "missing": self.missing,
            "doubled": self.doubled,
            "of positions that are not the batch's": self.misplaced,
            "of another generation": self.other_generation,
        }
        parts = [f"{count:,} {what}" for what, count in counted.items() if count]
        if self.altered:
            parts.append(f"{self.altered} altered")
        remedy = f"; {_PRUNED if self.is_pruned else self.remedy}" if self.is_pruned or self.remedy else ""
        return f"{self.found:,} rows instead of {self.expected:,}: {', '.join(parts) or 'not examined'}{remedy}"


@dataclass(frozen=True)
class UnknownBatch:
    """Rows of one UTC day under a batch id that the ledger does not know.

    `copies` of a sample of them stand under batches that the ledger has delivered; `elsewhere` says that and more, and
    `removal`, empty without copies, is the statement that deletes rows of which there is one. Nothing here deletes
    them: after a restore they may be the only copy of events that this ledger has lost.
    """

    batch_id: UUID
    day: date
    row_count: int
    first_position: int
    last_position: int
    copies: int
    elsewhere: str
    removal: str

    @property
    def sentence(self) -> str:
        """Say what they are and the exact next step."""
        said = (
            f"{counted(self.row_count, 'row')} of {self.day} under batch {self.batch_id}, which the ledger does not "
            f"know; {self.elsewhere}. "
        )
        if not self.removal:
            return (
                f"{said}They are rows of another outbox, or of another instance of this ledger from before a restore "
                "or a failover: leave them, because they may be the only copy."
            )
        return f"{said}Rows without such a copy may be the only one; this removes the others alone: {self.removal}"


@dataclass(frozen=True)
class LateEvents:
    """Events at positions of a batch that was cut before they were recorded: the sequence went back."""

    batch_id: UUID
    day: date
    event_count: int

    @property
    def sentence(self) -> str:
        """Say why they were never delivered and the exact next step."""
        return (
            f"{counted(self.event_count, 'event')} recorded at positions of batch {self.batch_id} after it was cut: "
            "the sequence of outbox.event went back, and nothing delivered them. 'outbox reconcile --repair' gives "
            "them new positions, from which they are delivered; look for what calls setval on "
            "outbox.event_position_seq."
        )


@dataclass(frozen=True)
class TypeTotals:
    """Events of one type and UTC day on both sides; only of batches whose events PostgreSQL still holds."""

    day: date
    event_type: str
    expected: int
    found: int


@dataclass(frozen=True)
class DayTotals:
    """One UTC day on both sides.

    `batches` and rows are of processed batches, `expected_*` from the ledger, `found_*` from ClickHouse. Checksums do
    not depend on the order of rows. `differing_pruned` are those of the differing batches that cannot be sent again.
    """

    day: date
    batches: int = 0
    differing: int = 0
    differing_pruned: int = 0
    expected_rows: int = 0
    found_rows: int = 0
    expected_checksum: str = "0" * 16
    found_checksum: str = "0" * 16
    pruned_batches: int = 0
    open_batches: int = 0
    parked_batches: int = 0
    held_events: int = 0
    stray_events: int = 0
    late_events: int = 0
    unknown_rows: int = 0

    def plus(self, other: "DayTotals") -> "DayTotals":
        """Return these totals with another day's added."""
        values = asdict(self) | {
            name: _sum_of(getattr(self, name), value) for name, value in asdict(other).items() if name != "day"
        }
        return DayTotals(**values)

    @property
    def is_whole(self) -> bool:
        """True when each event that ought to be in ClickHouse is there once; batches may still be on their way."""
        return not (self.differing or self.stray_events or self.late_events or self.parked_batches)

    @property
    def is_clean(self) -> bool:
        """True when the day is whole and holds no rows of unknown batches."""
        return self.is_whole and not self.unknown_rows

    @property
    def is_repairable(self) -> bool:
        """True when there is something that sending batches again or putting events back would repair."""
        return bool(self.differing > self.differing_pruned or self.stray_events or self.late_events)

    @property
    def sentence(self) -> str:
        """Say what is wrong, or that nothing is."""
        uneven = self.found_rows != self.expected_rows
        rows = f", {self.found_rows:,} rows instead of {self.expected_rows:,}" if uneven else ""
        untracked = counted(self.stray_events, "untracked event")
        told = {
            f"{self.differing:,} of {self.batches:,} batches differ{rows}": self.differing,
            f"{untracked} (neither unclaimed nor in a gap, a batch or quarantine)": self.stray_events,
            f"{counted(self.late_events, 'event')} recorded after the cut of that batch": self.late_events,
            f"{counted(self.parked_batches, 'batch', 'batches')} parked": self.parked_batches,
            f"{counted(self.unknown_rows, 'row')} of unknown batches": self.unknown_rows,
        }
        parts = [what for what, count in told.items() if count]
        said = (
            ", ".join(parts)
            or f"{_batches(self.batches)}, {counted(self.found_rows, 'row')}, all as the ledger expects"
        )
        waiting = f"; {_batches(self.open_batches)} on the way" if self.open_batches else ""
        pruned = f"; {_batches(self.pruned_batches)} pruned, which can only be proved" if self.pruned_batches else ""
        return f"{said}{waiting}{pruned}"


@dataclass(frozen=True)
class Reconciled:
    """What comparing a window found; a day without batches and findings is not among `days`.

    Of `unknown_batches` unknown batches at most the first hundred are in `unknown`.
    """

    window: Window
    days: tuple[DayTotals, ...] = ()
    differences: tuple[Difference, ...] = ()
    untracked: tuple[UntrackedEvents, ...] = ()
    late: tuple[LateEvents, ...] = ()
    unknown: tuple[UnknownBatch, ...] = ()
    unknown_batches: int = 0
    types: tuple[TypeTotals, ...] = ()
    whole: tuple[tuple[UUID, int], ...] = ()
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """True when every day is clean and there are no rows of unknown batches anywhere."""
        return all(day.is_clean for day in self.days) and not self.unknown

    def day(self, day: date) -> DayTotals:
        """Return the totals of a day of the window, zeros for one without batches."""
        return next((totals for totals in self.days if totals.day == day), DayTotals(day))

    def total(self, day: date) -> DayTotals:
        """Return the totals of all days of the window, as those of one day."""
        return reduce(DayTotals.plus, (totals for totals in self.days if totals.day in self.window), DayTotals(day))


def _sum_of(mine: int | str, theirs: int | str) -> int | str:
    if isinstance(mine, int) and isinstance(theirs, int):
        return mine + theirs
    return f"{(int(str(mine), 16) + int(str(theirs), 16)) % 2**64:016x}"


def checksum(proof: Proof) -> str:
    """Return one number for a set of rows: the sums of their proof, added up."""
    total = proof.id_sum + proof.position_sum + proof.time_sum + proof.context_sum + sum(proof.columns.values())
    return f"{total % 2**64:016x}"


def _batches(count: int) -> str:
    return counted(count, "batch", "batches")
