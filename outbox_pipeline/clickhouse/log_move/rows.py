"""The rows of two tables of the log, by batch: what each has, copied from one to the other, and compared.

Invariant: nothing is copied on trust. A comparison goes over every column that holds what was inserted, users' own
too, and no order of rows or merges changes it.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.quoting import quoted_name
from outbox_pipeline.event_schema import EVENT_COLUMNS

_SURVEY = """
SELECT batch_id, count(), sum(cityHash64(generation, position)), min(position), max(position)
FROM {name:Identifier} GROUP BY batch_id
"""

_OF_BATCHES = """
batch_id IN {batch_ids:Array(UUID)} AND position BETWEEN {first_position:UInt64} AND {last_position:UInt64}
""".strip()

_DROP = "DELETE FROM {name:Identifier} WHERE batch_id IN {batch_ids:Array(UUID)}"

_RUNNING = """
SELECT max(elapsed) AS seconds, count() AS number FROM system.processes
WHERE current_database = currentDatabase() AND JSONExtractString(Settings['log_comment'], 'moves') = {table:String}
"""

#: A copy is proved afterwards, so it need not be one block; and a token, or the hash of a block, that the new table
#: remembers of rows which were deleted again would keep them out.
_COPYING = {
    "insert_deduplicate": 0,
    "deduplicate_insert": "disable",
    "max_insert_threads": 1,
    "max_partitions_per_insert_block": 0,
    "throw_on_max_partitions_per_insert_block": 0,
}

_OWN = {column.name for column in EVENT_COLUMNS}


@dataclass(frozen=True)
class Shown:
    """What a table has under a batch's id; `mark` adds up generation and position of its rows."""

    row_count: int
    mark: int
    first_position: int
    last_position: int


def survey(client: EventLogClient, name: str) -> dict[UUID, Shown]:
    """Return what a table has of each batch id. One scan of three narrow columns, and one entry a batch in memory."""
    found: dict[UUID, Shown] = {}
    for block in client.blocks(_SURVEY, {"name": name}):
        found.update({batch_id: Shown(*map(int, rest)) for batch_id, *rest in block})
    return found


def copy_rows(client: EventLogClient, into: str, batches: dict[UUID, Shown], columns: Sequence[str], run: int) -> None:
    """Insert the log's rows of these batches into another table, where none of them is."""
    named = ", ".join(map(quoted_name, columns))
    client.run(
        f"INSERT INTO {{into:Identifier}} ({named}) SELECT {named} FROM {{name:Identifier}} WHERE {_OF_BATCHES}",  # noqa: S608
        {"name": client.table, "into": into, **_bounds(batches)},
        settings=_settings(client, run, _COPYING),
    )


def drop_rows(client: EventLogClient, name: str, batch_ids: Collection[UUID], run: int) -> None:
    """Delete all rows of these batches from a table and wait until they are gone."""
    named = {"name": name, "batch_ids": list(map(str, batch_ids))}
    client.run(_DROP, named, settings=_settings(client, run, {}))


def sums_of_rows(
    client: EventLogClient, name: str, batches: dict[UUID, Shown], columns: Sequence[str]
) -> dict[UUID, tuple[int, int]]:
    """Return for each batch how many rows a table has of it, and the sum of the hashes of its rows."""
    statement = (
        f"SELECT batch_id, count(), sum({_hash_of_row(columns)}) FROM {{name:Identifier}}"  # noqa: S608 - names of columns
        f" WHERE {_OF_BATCHES} GROUP BY batch_id"
    )
    rows = client.blocks(statement, {"name": name, **_bounds(batches)})
    return {batch_id: (int(count), int(total)) for block in rows for batch_id, count, total in block}


def seconds_of_copy(client: EventLogClient) -> float | None:
    """Return for how long the oldest statement of a move of this log has been running, None when none does.

    ClickHouse shows a user without SHOW PROCESSES only the user's own.
    """
    (row,) = client.rows(_RUNNING)
    return float(row["seconds"]) if int(row["number"]) else None


def _hash_of_row(columns: Sequence[str]) -> str:
    own = [quoted_name(name) for name in columns if name in _OWN]
    added = [quoted_name(name) for name in columns if name not in _OWN]
    # The hash of a NULL is NULL, and not every type has one; every value has a text.
    texts = [f"toString(tuple({', '.join(added)}))"] if added else []
    return f"cityHash64({', '.join([*own, *texts])})"


def _bounds(batches: dict[UUID, Shown]) -> dict[str, Any]:
    return {
        "batch_ids": list(map(str, batches)),
        "first_position": min(shown.first_position for shown in batches.values()),
        "last_position": max(shown.last_position for shown in batches.values()),
    }


def _settings(client: EventLogClient, run: int, own: dict[str, Any]) -> dict[str, Any]:
    return {**own, "log_comment": json.dumps({"moves": client.table, "run": run})}
