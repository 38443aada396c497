"""What the steps of a delivery return: counts, times and the proof.

Invariant: no event's content; of an event its type and its position at most, and why it was rejected.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from outbox_pipeline.batches import Proof


@dataclass(frozen=True)
class Extracted:
    """What the extract step found in PostgreSQL."""

    event_count: int
    context_bytes: int
    seconds: float


@dataclass(frozen=True)
class Validated:
    """What the validate step decided, or found decided by an earlier attempt."""

    accepted_count: int
    rejected: dict[int, list[str]]
    event_types: dict[str, int]
    was_frozen: bool

    @property
    def reasons(self) -> dict[str, int]:
        """How many events were rejected for each reason."""
        return count_reasons(self.rejected)


@dataclass(frozen=True)
class Loaded:
    """What the load step sent and what ClickHouse shows."""

    row_count: int
    sent_bytes: int
    generation: int
    was_there: bool
    seconds: float
    proof: Proof


@dataclass(frozen=True)
class Marked:
    """What the mark step wrote to the ledger.

    `lag_seconds`: from the oldest event to the mark; negative where it was recorded under a clock that was ahead.
    """

    accepted_count: int
    quarantined_count: int
    processed_at: datetime
    context_bytes: int
    lag_seconds: float
    seconds: float


def count_reasons(rejected: dict[int, list[str]]) -> dict[str, int]:
    """Return how often each reason code was given; an event may have several."""
    return dict(Counter(reason.partition(":")[0] for reasons in rejected.values() for reason in reasons))
