"""What a batch's rows add up to, computed on both sides: from the Arrow table before it is sent, and by ClickHouse.

Both functions implement the same sums; a test compares them over random rows. Everything wraps at 2**64, as
ClickHouse's UInt64 does. What a column adds is tied to its row by a factor, the hash of the id made odd: an odd factor
gives each altered number another product.
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
from isal.isal_zlib import crc32

from outbox_pipeline.batches import Batch, Proof
from outbox_pipeline.clickhouse.batch_rows import ROWS_OF_BATCH, windows_of_batch
from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.event_schema import PROOF_VERSION, EventColumn, proved_columns

# Mixing constants of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB

#: Texts that are longer on average are looked at where they are: to copy them costs more.
_MAX_COPIED_BYTES = 1_000
#: What is copied at once ought to stay in the processor's cache; so many texts at least and at most.
_CACHED_BYTES = 250_000
_PORTIONS = (1_024, 16_384)

_HASHED = f"""
WITH
    UUIDToNum(event_id) AS bytes,
    reinterpretAsUInt64(reverse(substring(bytes, 1, 8))) AS high,
    reinterpretAsUInt64(reverse(substring(bytes, 9, 8))) AS low,
    bitXor(high, low * toUInt64({_GOLDEN})) AS seed,
    bitXor(seed, bitShiftRight(seed, 30)) * toUInt64({_FIRST}) AS first,
    bitXor(first, bitShiftRight(first, 27)) * toUInt64({_SECOND}) AS second,
    bitXor(second, bitShiftRight(second, 31)) AS hash
SELECT *, high, low, hash, bitOr(hash, 1) AS factor
FROM {{table:Identifier}}
WHERE
"""  # noqa: S608 - constants of this package

#: What a value of each kind is as a number of 64 bits.
_NUMBERS = {
    "name": "toUInt64(CRC32({name}))",
    "text": "toUInt64(CRC32({name}))",
    "json": "toUInt64(CRC32({name}))",
    "number": "{name}",
    "time": "reinterpretAsUInt64(toUnixTimestamp64Micro({name}))",
}
_PROVED = proved_columns(PROOF_VERSION)
# An alias named like its column would be taken for it.
_TIED = "tied_"
_TIED_SUMS = [f"sum(factor * {_NUMBERS[one.kind].format(name=one.name)}) AS {_TIED}{one.name}" for one in _PROVED]

#: What `proof_of_row` reads, over `hashed_rows`.
SUMS = f"""
    count() AS row_count,
    sum(hash) AS id_sum,
    groupBitXor(high) AS id_xor_high,
    groupBitXor(low) AS id_xor_low,
    sum(position) AS position_sum,
    sum(reinterpretAsUInt64(toUnixTimestamp64Micro(event_date_time))) AS time_sum,
    sum(toUInt64(CRC32(event_context))) AS context_sum,
    {", ".join(_TIED_SUMS)}
"""


def hashed_rows(rows: str) -> str:
    """Return a subquery: the rows of the event log for which the condition *rows* holds, with what `SUMS` needs."""
    # ClickHouse writes an alias out wherever it stands: without the subquery it would read `factor` in nine sums.
    return f"({_HASHED.strip()} {rows})"


# Only constants of this package are put into the text; values are parameters.
_QUERY = f"""
SELECT {SUMS},
    countIf(generation != {{generation:UInt32}}) AS foreign_count
FROM {hashed_rows(ROWS_OF_BATCH)}
"""  # noqa: S608 - see above


def proof_of_table(table: pa.Table) -> Proof:
    """Return what these events (a table of the extracted columns) must add up to in ClickHouse."""
    high, low = id_words(table)
    hashes = _mixed(high, low)
    factors = hashes | np.uint64(1)
    sums = {column.name: _sums(_numbers(table, column), factors) for column in _PROVED}
    return Proof(
        row_count=table.num_rows,
        id_sum=_wrapped_sum(hashes),
        id_xor_high=int(np.bitwise_xor.reduce(high, initial=np.uint64(0))),
        id_xor_low=int(np.bitwise_xor.reduce(low, initial=np.uint64(0))),
        position_sum=sums["position"][0],
        time_sum=sums["event_date_time"][0],
        context_sum=sums["event_context"][0],
        columns={name: tied for name, (_, tied) in sums.items()},
        version=PROOF_VERSION,
    )


def proof_of_row(row: Mapping[str, Any]) -> Proof:
    """Return what ClickHouse answered to `SUMS`."""
    sums = {name: int(value) for name, value in row.items() if not name.startswith(_TIED)}
    return Proof(**sums, columns={one.name: int(row[_TIED + one.name]) for one in _PROVED}, version=PROOF_VERSION)


def proof_in_clickhouse(client: EventLogClient, batch: Batch, *, generation: int) -> tuple[Proof, int]:
    """Ask ClickHouse what the batch's rows add up to, and how many of them are not of *generation*.

    One query over the granules of the batch's positions (the bounds it was cut with), about a millisecond a million
    rows skipped.
    """
    windows = windows_of_batch(batch, batch.first_position, batch.last_position)
    found = [client.rows(_QUERY, {**window, "generation": generation})[0] for window in windows]
    foreign_count = sum(int(row.pop("foreign_count")) for row in found)
    return reduce(Proof.plus, map(proof_of_row, found)), foreign_count


def id_words(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the events' ids as two arrays of numbers of 64 bits: the first eight bytes of each, and the last."""
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


def _sums(values: np.ndarray, factors: np.ndarray) -> tuple[int, int]:
    return _wrapped_sum(values), _wrapped_sum(values * factors)


def _wrapped_sum(values: np.ndarray) -> int:
    return int(values.sum(dtype=np.uint64))


def _numbers(table: pa.Table, column: EventColumn) -> np.ndarray:
    """Return a column's values as numbers of 64 bits, of texts their CRC-32; a missing text is an empty one."""
    values = _one_chunk(table, column.name)
    if column.kind in ("number", "time"):
        numbers: np.ndarray = values.cast(pa.int64()).to_numpy()
        return numbers.view(np.uint64)
    if values.null_count == len(values):
        return np.zeros(len(values), np.uint64)
    if column.kind == "name":
        # Few different ones.
        names = values.dictionary_encode()
        return _checksums(names.dictionary).take(np.asarray(names.indices))
    return _checksums(values.fill_null("") if values.null_count else values)


def _checksums(texts: pa.StringArray) -> np.ndarray:
    # Chained maps and not a loop: no bytecode runs for an event.
    count = _CACHED_BYTES * len(texts) // max(1, texts.nbytes)
    count = min(max(count, _PORTIONS[0]), _PORTIONS[1])
    portions = (texts.slice(first, count) for first in range(0, len(texts), count))
    return np.fromiter(map(crc32, chain.from_iterable(map(_bytes_of, portions))), np.uint64, len(texts))


def _bytes_of(texts: pa.StringArray) -> Iterable[Any]:
    """Return the bytes of each text: short ones as copies, made in half the time of as many views."""
    if texts.nbytes <= _MAX_COPIED_BYTES * len(texts):
        return np.asarray(texts.cast(pa.binary()))
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int32, len(texts) + 1, 4 * texts.offset).tolist()
    return map(memoryview(data).__getitem__, map(slice, bounds, islice(bounds, 1, None)))


def _one_chunk(table: pa.Table, name: str) -> pa.Array:
    # Combining copies even a single chunk.
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
