"""The events of a delivered batch as the event log shows them, page by page in the order of their positions."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from outbox_pipeline.clickhouse.batch_rows import ROWS_OF_BATCH, OfBatch, windows_of_batch
from outbox_pipeline.clickhouse.client import EventLogClient

_COLUMNS = "SELECT event_id, event_type, position, event_date_time, recorded_at"
_OF_BATCH = f"FROM {{table:Identifier}} WHERE {ROWS_OF_BATCH}"
_OF_TYPES = "AND event_type IN {types:Array(String)}"
_IN_ORDER = "ORDER BY position, event_id LIMIT {limit:UInt32}"
_TIMES = ("event_date_time", "recorded_at")


def events_of_batch(
    client: EventLogClient,
    batch: OfBatch,
    *,
    bounds: tuple[int, int],
    limit: int,
    types: Collection[str] = (),
    with_context: bool = False,
) -> list[dict[str, Any]]:
    """Return the first *limit* rows of a batch between two positions, both included; of these *types*, if any.

    `event_context` is among the columns on demand only.
    """
    statement = " ".join(
        [_COLUMNS + ", event_context" * with_context, _OF_BATCH, _OF_TYPES if types else "", _IN_ORDER]
    )
    given = {"limit": limit, **({"types": sorted(types)} if types else {})}
    found: list[dict[str, Any]] = []
    for window in windows_of_batch(batch, *bounds):
        if len(found) < limit:
            found += client.rows(statement, {**window, **given})
    # The driver hands times of a UTC column over without their zone.
    return [row | {name: _in_utc(row[name]) for name in _TIMES} for row in found[:limit]]


def _in_utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC)
