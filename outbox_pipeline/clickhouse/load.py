"""Put a batch's rows into ClickHouse, and take old generations of it out.

Invariant: the same batch and generation is always the same bytes under the same token, so a request that arrives twice
or late is dropped by ClickHouse. That is the cheap path; whether the rows are there is asked separately (`proof`).
"""

import json
from uuid import UUID

import pyarrow as pa

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.errors import translated

#: One block whatever the size: blocks commit one by one, so half a batch could stay behind.
_ONE_BLOCK_ROWS = 4_000_000

_INSERT_SETTINGS = {
    "async_insert": 0,
    "deduplicate_insert": "enable",
    "insert_deduplicate": 1,
    "max_insert_threads": 1,
    "max_insert_block_size": _ONE_BLOCK_ROWS,
    "min_insert_block_size_rows": _ONE_BLOCK_ROWS,
    "min_insert_block_size_bytes": 0,
    "max_partitions_per_insert_block": 0,
}


def deduplication_token(table: str, batch_id: UUID, generation: int) -> str:
    """Return the token under which ClickHouse recognises this generation of the batch."""
    return f"{table}:{batch_id}:{generation}"


def insert_generation(
    client: EventLogClient, events: pa.Table, *, batch_id: UUID, generation: int, attempt: int
) -> int:
    """Insert the whole batch as one generation; return the bytes of Arrow data handed to the driver.

    An answer means that ClickHouse took the request, not that the rows are there. Raises the kinds of
    `clickhouse.errors`.
    """
    rows = _as_rows(events, batch_id, generation)
    settings = client.known(
        {
            **_INSERT_SETTINGS,
            "insert_deduplication_token": deduplication_token(client.table, batch_id, generation),
            "query_id": f"outbox-{batch_id}-{generation}-{attempt}",
            "log_comment": json.dumps({"batch_id": str(batch_id), "generation": generation, "attempt": attempt}),
        }
    )
    with translated(client.where):
        client.driver.insert_arrow(client.table, rows, settings=settings)
    return int(rows.nbytes)


def delete_older_generations(client: EventLogClient, batch_id: UUID, generation: int) -> None:
    """Delete the batch's rows of generations below *generation* and wait until they are gone.

    A run frozen before this statement can wake up an hour later and do no harm: newer rows are out of its reach.
    """
    client.run(
        "DELETE FROM {table:Identifier} WHERE batch_id = {batch_id:UUID} AND generation < {generation:UInt32}",
        {"batch_id": str(batch_id), "generation": generation},
        settings={"lightweight_deletes_sync": 2, "mutations_sync": 2},
    )


def _as_rows(events: pa.Table, batch_id: UUID, generation: int) -> pa.Table:
    count = events.num_rows
    columns = {
        "event_type": events["event_type"],
        "event_date_time": events["event_date_time"],
        "environment": events["environment"],
        "event_context": events["event_context"],
        "metadata_version": events["metadata_version"].cast(pa.uint64()),
        "event_id": events["event_id"],
        "batch_id": pa.repeat(pa.scalar(batch_id.bytes, pa.binary(16)), count),
        "generation": pa.repeat(pa.scalar(generation, pa.uint32()), count),
        "position": events["position"].cast(pa.uint64()),
        "recorded_at": events["recorded_at"],
        "trace_context": events["trace_context"].fill_null(""),
    }
    return pa.table(columns).combine_chunks()
