"""What ClickHouse holds of each batch, whichever instance wrote it: used where the ledger has lost part of its past.

Nothing here changes a row. Answers are streamed block by block; the caller keeps only what it needs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from outbox_pipeline.clickhouse.client import EventLogClient

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


def shown_rows(client: EventLogClient, shown: ShownBatch, *, up_to: int) -> Iterator[list[tuple[int, UUID]]]:
    """Yield position and event id of a batch's rows up to a position, in blocks and in no order."""
    bounds = {"first_position": shown.first_position, "last_position": min(shown.last_position, up_to)}
    for block in client.blocks(_ROWS, {"batch_id": str(shown.batch_id), **bounds}):
        yield [(int(position), event_id) for position, event_id in block]


def rows_beyond(client: EventLogClient, shown: ShownBatch, *, position: int, limit: int) -> list[tuple[int, UUID]]:
    """Return position and event id of at most *limit* of a batch's rows above a position, lowest first."""
    rows = client.rows(
        f"{_ROWS} ORDER BY position LIMIT {{limit:UInt32}}",
        {
            "batch_id": str(shown.batch_id),
            "first_position": position + 1,
            "last_position": shown.last_position,
            "limit": limit,
        },
    )
    return [(int(row["position"]), row["event_id"]) for row in rows]


def fenced_attempts(client: EventLogClient) -> Iterator[dict[UUID, int]]:
    """Yield the highest attempt on record for each batch that ever took more than one."""
    for block in client.blocks(_FENCED):
        yield {batch_id: int(attempt) for batch_id, attempt in block}
