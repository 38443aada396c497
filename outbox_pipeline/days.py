"""UTC days as data: which there can be, windows of them, how far one is delivered, and its untracked events.

A day is the one on which PostgreSQL stored an event. Nothing here asks a store.
"""

from dataclasses import dataclass
from datetime import date, datetime

#: Days that ClickHouse's type Date can hold.
FIRST_DAY = date(1970, 1, 1)
LAST_DAY = date(2149, 6, 5)


@dataclass(frozen=True)
class Window:
    """UTC days, both ends included."""

    first_day: date
    last_day: date

    def __contains__(self, day: date) -> bool:
        """Tell whether a day is one of them."""
        return self.first_day <= day <= self.last_day

    @property
    def day_count(self) -> int:
        """How many days these are; none when the last one is before the first."""
        return max(0, (self.last_day - self.first_day).days + 1)


#: Every day that an event can have been recorded on.
ALL_DAYS = Window(date(1970, 1, 1), date(2200, 1, 1))


@dataclass(frozen=True)
class DayCompleteness:
    """What the ledger says of the events recorded on one UTC day; sums are of the proofs, modulo 2**64.

    `complete_through` is exclusive, and the end of the day at most.
    """

    day: date
    complete_through: datetime
    event_count: int
    batch_count: int
    undelivered_count: int
    quarantined_count: int
    discarded_count: int
    replaced_count: int
    id_sum: int
    position_sum: int
    context_sum: int


@dataclass(frozen=True)
class DeliveredDay(DayCompleteness):
    """The same as analysts see it, with the time in PostgreSQL of which it is true; see the table's comments."""

    written_at: datetime
    is_complete: bool


@dataclass(frozen=True)
class UntrackedEvents:
    """Events of one UTC day that are untracked: neither unclaimed nor in a gap, a batch or quarantine."""

    day: date
    event_count: int
    positions: str
