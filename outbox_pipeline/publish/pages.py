"""Events cut into pages, each one statement and one round trip.

Invariant: what the server takes apart is what was put together. A page holding a separator in any of its texts is
sent event by event instead; JSON allows no control character outside an escape, so only names and traces can.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from outbox_pipeline.events import EventRow
from outbox_pipeline.postgres.queries import query_text

#: Bounds of one statement. PostgreSQL takes no message of 1 GB or more.
PAGE_ROWS = 1_000
PAGE_CHARACTERS = 8_000_000

#: As in insert_events.sql.
SEPARATOR = "\x1e"
NO_TRACE = "\x1d"


#: What a repeat is compared by.
_COMPARED = ("event_id", "event_type", "event_context", "metadata_version")


class Step(NamedTuple):
    """A statement with `:name` parameters and their values, all texts; a question is answered by one text."""

    statement: str
    parameters: Mapping[str, str | None]
    is_question: bool = False


class Page(NamedTuple):
    """The statement that writes some events, and how many they are."""

    step: Step
    event_count: int

    @property
    def question(self) -> Step:
        """Which of the events the outbox has with another type, version or context: their ids, parted by spaces."""
        name = "differing_event" if self.event_count == 1 else "differing_events"
        compared = {column: self.step.parameters[column] for column in _COMPARED}
        return Step(query_text(name), compared, is_question=True)


def pages(rows: Sequence[EventRow]) -> Iterator[Page]:
    """Yield the statements that write *rows* in their order."""
    if len(rows) == 1:
        return iter([_alone(rows[0])])
    return chain.from_iterable(map(_statements, _cut(rows)))


def _cut(rows: Sequence[EventRow]) -> Iterator[list[EventRow]]:
    page: list[EventRow] = []
    characters = 0
    for row in rows:
        characters += len(row.event_context)
        if page and (len(page) == PAGE_ROWS or characters > PAGE_CHARACTERS):
            yield page
            page, characters = [], len(row.event_context)
        page.append(row)
    if page:
        yield page


def _statements(rows: list[EventRow]) -> Iterator[Page]:
    if len(rows) > 1:
        columns = _joined(rows)
        if _is_separable(columns, rows):
            yield Page(Step(query_text("insert_events"), columns), len(rows))
            return
    for row in rows:
        yield _alone(row)


def _alone(row: EventRow) -> Page:
    texts = {
        "event_id": row.event_id.hex,
        "event_type": row.event_type,
        "event_date_time": row.event_date_time.isoformat(),
        "environment": row.environment,
        "event_context": row.event_context,
        "metadata_version": str(row.metadata_version),
        "trace_context": row.trace_context,
    }
    return Page(Step(query_text("insert_event"), texts), 1)


def _joined(rows: list[EventRow]) -> dict[str, str | None]:
    join = SEPARATOR.join
    return {
        "event_id": join([row.event_id.hex for row in rows]),
        "event_type": join([row.event_type for row in rows]),
        "event_date_time": join([row.event_date_time.isoformat() for row in rows]),
        "environment": join([row.environment for row in rows]),
        "event_context": join([row.event_context for row in rows]),
        "metadata_version": join([str(row.metadata_version) for row in rows]),
        "trace_context": join([NO_TRACE if row.trace_context is None else row.trace_context for row in rows]),
    }


def _is_separable(columns: dict[str, str | None], rows: list[EventRow]) -> bool:
    counts = {(text or "").count(SEPARATOR) for text in columns.values()}
    return counts == {len(rows) - 1} and all(row.trace_context != NO_TRACE for row in rows)
