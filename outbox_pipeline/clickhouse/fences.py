"""Clean the fence table: one small row for each attempt after a batch's first.

Invariant: a fence goes only after its batch was pruned, so it has outlived the retention. An insert that was frozen
for longer than that would no longer be refused; its rows stand under an attempt that is over, and a proof of the batch
finds them.
"""

from collections.abc import Collection
from datetime import UTC, datetime
from uuid import UUID

from outbox_pipeline.clickhouse.client import EventLogClient, in_steps

_OLD = """
SELECT batch_id FROM {fence:Identifier}
WHERE source = {source:String} AND batch_id > {after:UUID}
GROUP BY batch_id
HAVING max(fenced_at) < least(now64(6, 'UTC'), {now:DateTime64(6, 'UTC')}) - toIntervalDay({days:UInt32})
ORDER BY batch_id
LIMIT {limit:UInt32}
"""

#: Below every id that a batch can have.
FIRST = UUID(int=0)


def old_fences(client: EventLogClient, *, now: datetime, days: int, after: UUID, limit: int) -> list[UUID]:
    """Return up to *limit* batches whose last fence is older than *days*, in ClickHouse's own order after *after*.

    Old by ClickHouse's clock and by *now*.
    """
    at = now.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    rows = client.rows(_OLD, {"now": at, "after": str(after), "days": days, "limit": limit})
    return [row["batch_id"] for row in rows]


def drop_fences(client: EventLogClient, batch_ids: Collection[UUID]) -> None:
    """Delete the fences of these batches and wait until they are gone."""
    for some in in_steps(batch_ids):
        client.run(
            "DELETE FROM {fence:Identifier} WHERE source = {source:String} AND batch_id IN {batch_ids:Array(UUID)}",
            {"batch_ids": [str(batch_id) for batch_id in some]},
        )
