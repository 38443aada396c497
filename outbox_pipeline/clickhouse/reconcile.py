"""What the event log shows of many batches at once: their sums, types and positions, and rows of unknown batches.

Invariant: nothing here changes a row, and memory does not grow with the number of rows: sums are additive, and an
answer has one line for a batch, a type or a position of one batch.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

from outbox_pipeline.batches import Batch, Proof
from outbox_pipeline.clickhouse.batch_rows import ROWS_OF_BATCH, windows_of_batch
from outbox_pipeline.clickhouse.client import EventLogClient, in_steps
from outbox_pipeline.clickhouse.proof import SUMS, hashed_rows, proof_of_row

#: Above this much memory a grouping goes on in files of the server.
_SPILL_BYTES = 200_000_000

#: Rows of a batch whose events are looked for under other batches.
SAMPLE_ROWS = 1000
#: Batches that are told of one event.
_MAX_BATCHES = 20

_BATCHES = """
source = {source:String} AND batch_id IN {batch_ids:Array(UUID)}
AND position BETWEEN {first_position:UInt64} AND {last_position:UInt64}
""".strip()

# Only constants of this package are put into the texts; values are parameters.
_PROOFS = """
SELECT batch_id, generation, {sums}
FROM {hashed}
GROUP BY batch_id, generation
"""

_TYPES = """
SELECT batch_id, event_type, count() AS row_count, sum(position) AS position_sum
FROM {{table:Identifier}}
WHERE {rows}
GROUP BY batch_id, event_type
"""

_POSITIONS = f"""
SELECT position, countIf(generation = {{generation:UInt32}}), countIf(generation != {{generation:UInt32}})
FROM {{table:Identifier}}
WHERE {ROWS_OF_BATCH}
GROUP BY position
SETTINGS max_bytes_before_external_group_by = {_SPILL_BYTES}
"""  # noqa: S608 - see above

_UNKNOWN = """
SELECT batch_id, toDate(recorded_at) AS day, count() AS row_count, min(position) AS first, max(position) AS last
FROM {table:Identifier}
WHERE source = {source:String} AND batch_id IN {batch_ids:Array(UUID)}
GROUP BY batch_id, day
ORDER BY batch_id, day
"""

_SAMPLE = """
SELECT batch_id, event_id
FROM {table:Identifier}
WHERE source = {source:String} AND batch_id IN {batch_ids:Array(UUID)}
LIMIT {limit:UInt32} BY batch_id
"""

_BATCHES_WITH = """
SELECT event_id, groupUniqArray({limit:UInt32})(batch_id)
FROM {table:Identifier}
WHERE source = {source:String} AND event_id IN {event_ids:Array(UUID)}
GROUP BY event_id
"""


@dataclass(frozen=True)
class UnknownRows:
    """Rows of one UTC day under a batch id that the ledger does not know."""

    batch_id: UUID
    day: date
    row_count: int
    first_position: int
    last_position: int


@dataclass(frozen=True)
class ShownType:
    """What ClickHouse shows of one batch and type."""

    batch_id: UUID
    event_type: str
    row_count: int
    position_sum: int


def shown_proofs(
    client: EventLogClient, batches: Sequence[Batch], *, everywhere: Collection[UUID] = ()
) -> dict[UUID, dict[int, Proof]]:
    """Return what the rows of each batch and generation add up to; a batch without rows is missing.

    One query over the granules between the batches' positions. Batches that were adopted, and those named in
    *everywhere*, get a query each: rows of foreign positions do not count, and rows beyond the batch's positions do.
    """
    found: dict[UUID, dict[int, Proof]] = {}
    for row in _rows(client, _PROOFS, batches, everywhere=everywhere):
        batch_id, generation = row.pop("batch_id"), int(row.pop("generation"))
        proof = proof_of_row(row)
        earlier = found.setdefault(batch_id, {}).get(generation)
        found[batch_id][generation] = proof if earlier is None else earlier.plus(proof)
    return found


def shown_types(client: EventLogClient, batches: Sequence[Batch]) -> list[ShownType]:
    """Count the rows of each batch by event type."""
    return [
        ShownType(row["batch_id"], row["event_type"], int(row["row_count"]), int(row["position_sum"]))
        for row in _rows(client, _TYPES, batches, everywhere=())
    ]


def shown_positions(client: EventLogClient, batch: Batch) -> Iterator[tuple[int, int, int]]:
    """Yield each position under a batch's id with its rows of the current generation and of others."""
    for window in windows_of_batch(batch):
        for block in client.blocks(_POSITIONS, {**window, "generation": batch.generation}):
            for position, current, other in block:
                yield int(position), int(current), int(other)


def unknown_rows(client: EventLogClient, batch_ids: Sequence[UUID]) -> list[UnknownRows]:
    """Return by day what stands under these batch ids."""
    return [
        UnknownRows(row["batch_id"], row["day"], int(row["row_count"]), int(row["first"]), int(row["last"]))
        for some in in_steps(batch_ids)
        for row in client.rows(_UNKNOWN, {"batch_ids": [str(batch_id) for batch_id in some]})
    ]


def sample_ids(client: EventLogClient, batch_ids: Sequence[UUID]) -> dict[UUID, set[UUID]]:
    """Return the ids of up to `SAMPLE_ROWS` events under each of these batch ids."""
    found: dict[UUID, set[UUID]] = {}
    for some in in_steps(batch_ids):
        parameters = {"batch_ids": [str(batch_id) for batch_id in some], "limit": SAMPLE_ROWS}
        for block in client.blocks(_SAMPLE, parameters):
            for batch_id, event_id in block:
                found.setdefault(batch_id, set()).add(event_id)
    return found


def batches_with(client: EventLogClient, event_ids: Collection[UUID]) -> dict[UUID, set[UUID]]:
    """Return the batches under whose ids each of these events stands, wherever: one scan of the ids a thousand."""
    found: dict[UUID, set[UUID]] = {}
    for some in in_steps(event_ids):
        parameters = {"event_ids": [str(event_id) for event_id in some], "limit": _MAX_BATCHES}
        for block in client.blocks(_BATCHES_WITH, parameters):
            found |= {event_id: set(batch_ids) for event_id, batch_ids in block}
    return found


def _rows(
    client: EventLogClient, statement: str, batches: Sequence[Batch], *, everywhere: Collection[UUID]
) -> Iterator[dict[str, Any]]:
    alone = [batch for batch in batches if batch.foreign_positions or batch.batch_id in everywhere]
    together = [batch for batch in batches if not batch.foreign_positions and batch.batch_id not in everywhere]
    for some in in_steps(together):
        yield from _ask(client, statement, _BATCHES, _bounds(some))
    for batch in alone:
        for window in windows_of_batch(batch):
            yield from _ask(client, statement, ROWS_OF_BATCH, window)


def _ask(client: EventLogClient, statement: str, rows: str, parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from client.rows(statement.format(hashed=hashed_rows(rows), sums=SUMS, rows=rows), parameters)


def _bounds(batches: Sequence[Batch]) -> dict[str, Any]:
    return {
        "batch_ids": [str(batch.batch_id) for batch in batches],
        "first_position": min(batch.first_position for batch in batches),
        "last_position": max(batch.last_position for batch in batches),
    }
