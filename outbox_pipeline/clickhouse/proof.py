"""What a batch's rows add up to, computed on both sides: from the Arrow table before it is sent, and by ClickHouse.

Both functions implement the same sums; a test compares them over random rows. Everything wraps at 2**64, as
ClickHouse's UInt64 does.
"""

from functools import reduce
from itertools import islice

import numpy as np
import pyarrow as pa
from isal.isal_zlib import crc32

from outbox_pipeline.batches import Batch, Proof
from outbox_pipeline.clickhouse.batch_rows import ROWS_OF_BATCH, windows_of_batch
from outbox_pipeline.clickhouse.client import EventLogClient

# Mixing constants of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_WRAP = 2**64

#: Names that `SUMS` uses.
HASHES = f"""
WITH
    UUIDToNum(event_id) AS bytes,
    reinterpretAsUInt64(reverse(substring(bytes, 1, 8))) AS high,
    reinterpretAsUInt64(reverse(substring(bytes, 9, 8))) AS low,
    bitXor(high, low * toUInt64({_GOLDEN})) AS seed,
    bitXor(seed, bitShiftRight(seed, 30)) * toUInt64({_FIRST}) AS first,
    bitXor(first, bitShiftRight(first, 27)) * toUInt64({_SECOND}) AS second,
    bitXor(second, bitShiftRight(second, 31)) AS hash
"""

#: The fields of `Proof` over a set of rows, in its order.
SUMS = """
    count() AS row_count,
    sum(hash) AS id_sum,
    groupBitXor(high) AS id_xor_high,
    groupBitXor(low) AS id_xor_low,
    sum(position) AS position_sum,
    sum(reinterpretAsUInt64(toUnixTimestamp64Micro(event_date_time))) AS time_sum,
    sum(toUInt64(CRC32(event_context))) AS context_sum
"""

# Only constants of this package are put into the text; values are parameters.
_QUERY = f"""
{HASHES}
SELECT {SUMS},
    countIf(generation != {{generation:UInt32}}) AS foreign_count
FROM {{table:Identifier}}
WHERE {ROWS_OF_BATCH}
"""  # noqa: S608 - see above


def proof_of_table(table: pa.Table) -> Proof:
    """Return what these events (a table of the extracted columns) must add up to in ClickHouse."""
    high, low = _id_words(table)
    return Proof(
        row_count=table.num_rows,
        id_sum=int(_mixed(high, low).sum(dtype=np.uint64)),
        id_xor_high=int(np.bitwise_xor.reduce(high, initial=np.uint64(0))),
        id_xor_low=int(np.bitwise_xor.reduce(low, initial=np.uint64(0))),
        position_sum=_wrapped_sum(table, "position"),
        time_sum=_wrapped_sum(table, "event_date_time"),
        context_sum=_context_sum(table),
    )


def proof_in_clickhouse(client: EventLogClient, batch: Batch, *, generation: int) -> tuple[Proof, int]:
    """Ask ClickHouse what the batch's rows add up to, and how many of them are not of *generation*.

    One query over the granules of the batch's positions (the bounds it was cut with), about a millisecond a million
    rows skipped.
    """
    windows = windows_of_batch(batch, batch.first_position, batch.last_position)
    found = [client.rows(_QUERY, {**window, "generation": generation})[0] for window in windows]
    foreign_count = sum(int(row.pop("foreign_count")) for row in found)
    proofs = (Proof(**{name: int(value) for name, value in row.items()}) for row in found)
    return reduce(Proof.plus, proofs), foreign_count


def _id_words(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    ids = _one_chunk(table, "event_id")
    if len(ids) == 0:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    words = np.frombuffer(ids.buffers()[1], dtype=">u8", count=2 * len(ids), offset=16 * ids.offset)
    return words[0::2].astype(np.uint64), words[1::2].astype(np.uint64)


def _mixed(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    seed = high ^ (low * np.uint64(_GOLDEN))
    first = (seed ^ (seed >> np.uint64(30))) * np.uint64(_FIRST)
    second = (first ^ (first >> np.uint64(27))) * np.uint64(_SECOND)
    return second ^ (second >> np.uint64(31))


def _wrapped_sum(table: pa.Table, name: str) -> int:
    values = table.column(name).cast(pa.int64()).to_numpy()
    return int(values.sum(dtype=np.int64)) % _WRAP


def _context_sum(table: pa.Table) -> int:
    # Chained maps and not a loop: no bytecode runs for an event.
    contexts = _one_chunk(table, "event_context")
    if len(contexts) == 0:
        return 0
    _, offsets, data = contexts.buffers()
    bounds = np.frombuffer(offsets, np.int32, len(contexts) + 1, 4 * contexts.offset).tolist()
    texts = map(memoryview(data).__getitem__, map(slice, bounds, islice(bounds, 1, None)))
    return sum(map(crc32, texts)) % _WRAP


def _one_chunk(table: pa.Table, name: str) -> pa.Array:
    # Combining copies even a single chunk.
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
