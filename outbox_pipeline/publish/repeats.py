"""What a caller gets back: the ids of the events, and word of those that the outbox had already."""

from collections.abc import Sequence
from uuid import UUID

from outbox_pipeline.events import EventRow
from outbox_pipeline.ids import EventId
from outbox_pipeline.logs import application_log


def event_id_of(row: EventRow, new_count: int | None) -> EventId | None:
    """Return the id of *row*, which says whether it is a repeat; None when it was given up."""
    if new_count is None:
        return None
    if new_count == 0:
        application_log().info("event_repeated", event_id=str(row.event_id), event_type=row.event_type, count=1)
    return EventId(row.event_id, is_repeat=new_count == 0)


def event_ids_of(rows: Sequence[EventRow], new_count: int | None) -> list[UUID] | None:
    """Return the ids of *rows*, None when they were given up."""
    if new_count is None:
        return None
    if new_count < len(rows):
        application_log().info("event_repeated", event_type=rows[0].event_type, count=len(rows) - new_count)
    return [row.event_id for row in rows]
