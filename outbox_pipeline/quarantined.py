"""Events in quarantine as data: what became of each, and which of them are meant.

Nothing here asks a store; `postgres.quarantine` reads and writes these.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from outbox_pipeline.errors import UsageError


class QuarantineStatus(StrEnum):
    """What became of an event that validation refused."""

    HELD = "held"
    REQUEUED = "requeued"
    DISCARDED = "discarded"
    REPLACED = "replaced"


@dataclass(frozen=True)
class Filter:
    """Which quarantined events are meant: by their ids, or by everything else that is given, or all without anything.

    Times are about when the event was put into quarantine, `since` included and `until` not.
    """

    event_ids: frozenset[UUID] = frozenset()
    quarantine_ids: frozenset[int] = frozenset()
    event_type: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    batch_id: UUID | None = None

    def __post_init__(self) -> None:
        """Refuse what could only match by misunderstanding."""
        if self.has_ids and self.has_conditions:
            raise UsageError("Name events by id or by type, reason, batch and time, not by both.")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise UsageError("Nothing can be quarantined between since and until: since must be the earlier one.")

    @property
    def has_ids(self) -> bool:
        """True when events are named one by one."""
        return bool(self.event_ids or self.quarantine_ids)

    @property
    def has_conditions(self) -> bool:
        """True when events are chosen by what they have in common."""
        return any(value is not None for value in (self.event_type, self.reason, self.since, self.until, self.batch_id))


@dataclass(frozen=True)
class QuarantinedEvent:
    """One stay of an event in quarantine; `note` says why it was discarded, `replaced_by` by which event."""

    quarantine_id: int
    event_id: UUID
    position: int
    event_type: str
    reasons: list[str]
    batch_id: UUID
    status: QuarantineStatus
    quarantined_at: datetime
    resolved_at: datetime | None
    note: str | None
    replaced_by: UUID | None
