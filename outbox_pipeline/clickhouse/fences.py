"""Clean the fence table: one small row for each attempt after a batch's first.

Invariant: a fence goes only after its batch was pruned, so it has outlived the retention. An insert that was frozen
for longer than that would no longer be refused; its rows stand under an attempt that is over, and a proof of the batch
finds them.
"""

import json
from collections.abc import Collection, Mapping
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

_ADD = "INSERT INTO {fence:Identifier} (source, batch_id, attempt) FORMAT JSONEachRow"

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


def add_fences(client: EventLogClient, attempts: Mapping[UUID, int]) -> None:
    """Refuse inserts of lower attempts than these on each of the batches from now on; what already runs goes on."""
    rows = (
        json.dumps({"source": client.source, "batch_id": str(batch_id), "attempt": attempt})
        for batch_id, attempt in attempts.items()
    )
    client.run(_ADD, body=["\n".join(rows).encode()])
