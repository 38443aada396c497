"""What a test has published: the events given to the outbox of this process, with the database or without.

It needs no ClickHouse and no Dagster, and after `outbox.isolate()` no PostgreSQL.

Invariant: what is recorded is what was given to the transaction, in order, each event_id once. A transaction or
savepoint that is rolled back later takes nothing out of it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import UUID

from outbox_pipeline import published
from outbox_pipeline.published import Written

if TYPE_CHECKING:
    from outbox_pipeline.events import Event, EventRow

SomeEvent = TypeVar("SomeEvent", bound="Event")


@dataclass(frozen=True)
class PublishedEvent:
    """One event as it was given to the outbox; `event_context` is what its JSON text says."""

    event_id: UUID
    event_type: str
    event_date_time: datetime
    environment: str
    event_context: dict[str, Any]
    metadata_version: int
    trace_context: str | None


class Outbox:
    """What one test has published so far. Several threads may publish."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._rows: dict[UUID, EventRow] = {}
        self._lock = Lock()
        self._ends: list[Callable[[], None]] = []

    @overload
    def published(self, wanted: "type[SomeEvent]") -> "list[SomeEvent]": ...
    @overload
    def published(self, wanted: str | None = None) -> list[PublishedEvent]: ...
    def published(self, wanted: "type[SomeEvent] | str | None" = None) -> "list[SomeEvent] | list[PublishedEvent]":
        """Return the events published so far, oldest first.

        With an Event class: its instances, read back from what was written, for events of its type and version.
        Raises pydantic's ValidationError when one was published as a mapping that does not fit the class. With an event
        type, or nothing: all events of the type, or of any, with everything that is stored of them.
        """
        with self._lock:
            rows = list(self._rows.values())
        if isinstance(wanted, type):
            name = (wanted.__event_type__, wanted.__metadata_version__)
            mine = [row for row in rows if (row.event_type, row.metadata_version) == name]
            return [wanted.model_validate_json(row.event_context) for row in mine]
        return [_shown(row) for row in rows if wanted is None or row.event_type == wanted]

    def clear(self) -> None:
        """Forget what was published so far, for example by a test's preparation."""
        with self._lock:
            self._rows.clear()

    def isolate(self) -> None:
        """Write nothing to any database until the test ends; events are checked and recorded as before.

        No session is used then, so whatever the code under test passes as one will do.
        """
        self._ends.append(published.replace_outbox(self._record))

    def _record(self, rows: "Sequence[EventRow]") -> Written:
        with self._lock:
            before = len(self._rows)
            differing = [row.event_id for row in rows if _differs(self._rows.setdefault(row.event_id, row), row)]
            return Written(len(self._rows) - before, tuple(differing))

    def _watch(self) -> None:
        self._ends.append(published.observe(self._record))

    def _end(self) -> None:
        while self._ends:
            self._ends.pop()()


@contextmanager
def recorded() -> Iterator[Outbox]:
    """Record what is published during the block; `isolate` ends with it."""
    outbox = Outbox()
    outbox._watch()
    try:
        yield outbox
    finally:
        outbox._end()


def _differs(first: "EventRow", again: "EventRow") -> bool:
    said = [(row.event_type, row.metadata_version, row.event_context) for row in (first, again)]
    return said[0] != said[1]


def _shown(row: "EventRow") -> PublishedEvent:
    import json

    return PublishedEvent(
        event_id=row.event_id,
        event_type=row.event_type,
        event_date_time=row.event_date_time,
        environment=row.environment,
        event_context=json.loads(row.event_context),
        metadata_version=row.metadata_version,
        trace_context=row.trace_context,
    )
