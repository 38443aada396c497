"""What a caller gets back: the ids of the events, and word of those that the outbox had already.

A repeat that says something else is lost to whoever published it, so of that there is a warning. Ids only: what either
event says is nobody's in a log.
"""

from collections.abc import Sequence
from uuid import UUID

from outbox_pipeline.events import EventRow
from outbox_pipeline.ids import EventId
from outbox_pipeline.logs import application_log
from outbox_pipeline.published import Written

#: Ids in one log line.
_IDS_TOLD = 10


def event_id_of(row: EventRow, written: Written | None) -> EventId | None:
    """Return the id of *row*, which says whether it is a repeat; None when it was given up."""
    if written is None:
        return None
    _tell([row], written)
    return EventId(row.event_id, is_repeat=written.new_count == 0, differs=bool(written.differing))


def event_ids_of(rows: Sequence[EventRow], written: Written | None) -> list[UUID] | None:
    """Return the ids of *rows*, None when they were given up."""
    if written is None:
        return None
    _tell(rows, written)
    return [row.event_id for row in rows]


def _tell(rows: Sequence[EventRow], written: Written) -> None:
    same_count = len(rows) - written.new_count - len(written.differing)
    if same_count > 0:
        event_id = str(rows[0].event_id) if len(rows) == 1 else None
        application_log().info("event_repeated", event_id=event_id, event_type=rows[0].event_type, count=same_count)
    if written.differing:
        ids = [str(event_id) for event_id in written.differing[:_IDS_TOLD]]
        application_log().warning("event_repeated", event_ids=ids, count=len(written.differing), differs=True)
