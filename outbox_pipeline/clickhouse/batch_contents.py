"""What ClickHouse holds of each batch, whichever instance wrote it: used where the ledger has lost part of its past.

Nothing here changes a row. Answers are streamed block by block; the caller keeps only what it needs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from outbox_pipeline.batches import Batch
from outbox_pipeline.clickhouse.batch_rows import MAX_FOREIGN_STRETCHES
from outbox_pipeline.clickhouse.client import EventLogClient, in_steps

_BATCHES = """
SELECT batch_id, count(), min(position), max(position), max(generation), max(loaded_at)
FROM {table:Identifier}
WHERE source = {source:String}
GROUP BY batch_id
"""

_COUNTS = "SELECT batch_id, count() FROM {table:Identifier} WHERE source = {source:String} GROUP BY batch_id"

#: Before it was migrated a table has the rows of one source, and no column that says so.
_COUNTS_WITHOUT_SOURCE = "SELECT batch_id, count() FROM {table:Identifier} WHERE {source:String} = '' GROUP BY batch_id"

_HAS_SOURCES = """
SELECT 1 FROM system.columns WHERE database = currentDatabase() AND table = {table:String} AND name = 'source'
"""

_ROWS = """
SELECT position, event_id
FROM {table:Identifier}
WHERE source = {source:String} AND batch_id = {batch_id:UUID}
    AND position BETWEEN {first_position:UInt64} AND {last_position:UInt64}
"""

_FOREIGN_ROWS = f"""
{_ROWS.strip()}
    AND arrayExists(
        (since, until) -> position >= since AND position < until, {{since:Array(UInt64)}}, {{until:Array(UInt64)}}
    )
"""

_SHOWN = """
SELECT DISTINCT event_id
FROM {table:Identifier}
WHERE source = {source:String} AND batch_id IN {batch_ids:Array(UUID)}
    AND position IN {positions:Array(UInt64)} AND event_id IN {event_ids:Array(UUID)}
"""

_FENCED = "SELECT batch_id, max(attempt) FROM {fence:Identifier} WHERE source = {source:String} GROUP BY batch_id"


@dataclass(frozen=True)
class ShownBatch:
    """One batch as ClickHouse shows it; `generation` is the highest among its rows."""

    batch_id: UUID
    row_count: int
    first_position: int
    last_position: int
    generation: int
    loaded_at: datetime

    @property
    def bounds(self) -> tuple[int, int]:
        """The first and the last position of its rows."""
        return self.first_position, self.last_position


def shown_batches(client: EventLogClient) -> Iterator[list[ShownBatch]]:
    """Yield every batch of the source in the event log, some ten thousand at a time.

    One scan of the narrow columns; ClickHouse keeps one entry a batch in memory for it.
    """
    for block in client.blocks(_BATCHES):
        yield [ShownBatch(*row) for row in block]


def counts_of_batches(client: EventLogClient) -> Iterator[dict[UUID, int]]:
    """Yield how many rows there are of every batch of the source, also in a table without the column.

    One scan of one narrow column.
    """
    for block in client.blocks(_COUNTS if client.rows(_HAS_SOURCES) else _COUNTS_WITHOUT_SOURCE):
        yield {batch_id: int(count) for batch_id, count in block}


def shown_rows(client: EventLogClient, batch_id: UUID, bounds: tuple[int, int]) -> Iterator[list[tuple[int, UUID]]]:
    """Yield position and event id of a batch's rows from one position to another, in blocks and in no order."""
    for block in client.blocks(_ROWS, _between(batch_id, bounds)):
        yield [(int(position), event_id) for position, event_id in block]


def foreign_rows(client: EventLogClient, batch: Batch, shown: ShownBatch) -> Iterator[list[tuple[int, UUID]]]:
    """Yield position and event id of the rows under a batch's id that are no events of its own, in blocks."""
    for some in in_steps(batch.foreign_positions, MAX_FOREIGN_STRETCHES):
        stretches = {"since": [since for since, _ in some], "until": [until for _, until in some]}
        for block in client.blocks(_FOREIGN_ROWS, _between(shown.batch_id, shown.bounds) | stretches):
            yield [(int(position), event_id) for position, event_id in block]


def which_shown(client: EventLogClient, rows: Iterable[tuple[UUID, int, UUID]]) -> set[UUID]:
    """Return the event ids of those rows, each a batch, a position and an event id, that stand in the event log."""
    found: set[UUID] = set()
    for some in in_steps(rows):
        parameters = {
            "batch_ids": sorted({str(batch_id) for batch_id, _, _ in some}),
            "positions": [position for _, position, _ in some],
            "event_ids": [str(event_id) for _, _, event_id in some],
        }
        found |= {row["event_id"] for row in client.rows(_SHOWN, parameters)}
    return found


def _between(batch_id: UUID, bounds: tuple[int, int]) -> dict[str, Any]:
    return {"batch_id": str(batch_id), "first_position": bounds[0], "last_position": bounds[1]}


def fenced_attempts(client: EventLogClient) -> Iterator[dict[UUID, int]]:
    """Yield the highest attempt on record for each batch that ever took more than one."""
    for block in client.blocks(_FENCED):
        yield {batch_id: int(attempt) for batch_id, attempt in block}
