"""Put a batch's rows into ClickHouse, and take old generations of it out.

Two invariants. The same batch and generation is always the same bytes under the same token, so a request that arrives
twice is dropped by ClickHouse; a batch keeps the columns of the proof that it was frozen with. And each insert names
its attempt and its ledger, and refuses itself when a higher attempt is on record in the fence table or the event log is
another ledger's, so a request that was frozen for an hour is refused when it arrives, whatever the token's window; so
is one of an instance whose ledger another one has adopted since, and any that arrives after its deadline. Whether the
rows are there is asked separately (`proof`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import RawIOBase
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa

from outbox_pipeline.batches import Batch, Lease, LedgerIdentity
from outbox_pipeline.clickhouse.batch_rows import ROWS_OF_BATCH, windows_of_batch
from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.deadline import IS_IN_TIME
from outbox_pipeline.clickhouse.errors import ADOPTED_WORDS, FENCED_WORDS, FOREIGN_WORDS
from outbox_pipeline.clickhouse.owner import OWNERS
from outbox_pipeline.clickhouse.proof import id_words
from outbox_pipeline.clickhouse.statement_settings import BATCH_INSERT, ONE_BLOCK_ROWS
from outbox_pipeline.clickhouse.table import COLUMNS
from outbox_pipeline.clickhouse.witness import ADOPTED_AT
from outbox_pipeline.errors import InDoubtError
from outbox_pipeline.event_schema import PROOF_VERSION, EventColumn, FilledBy, sent_columns

#: How an id travels, and what makes a UUID of it. ClickHouse reads Arrow's 16 bytes as a UUID since 26.5; before, it
#: refused them or turned both halves round. These bytes it takes as they are, and 36 characters would be dearer.
_ID_IN_FILE = "FixedString(16)"
_ID_OF_FILE = "reinterpretAsUUID({name})"

# Column names and types are constants of this package; values are parameters.
_FENCED = f"""
WHERE throwIf(
    (
        SELECT max(attempt) FROM {{fence:Identifier}} WHERE source = {{source:String}} AND batch_id = {{batch_id:UUID}}
    ) > {{attempt:UInt32}},
    '{FENCED_WORDS}'
) = 0 AND throwIf(({OWNERS}) != [{{ledger_id:UUID}}], '{FOREIGN_WORDS}') = 0
AND throwIf(({ADOPTED_AT}) > {{floor:UInt64}}, '{ADOPTED_WORDS}') = 0
AND {IS_IN_TIME}
FORMAT Arrow
""".strip()  # noqa: S608 - see above; the data begins right behind the format

_RUNNING = """
SELECT elapsed FROM system.processes
WHERE startsWith(Settings['insert_deduplication_token'], {token:String}) AND current_database = currentDatabase()
    AND JSONExtractString(Settings['log_comment'], 'source') = {source:String}
    AND JSONExtractString(Settings['log_comment'], 'ledger_id') != {not_of:String}
"""

_DELETE_OLDER = f"DELETE FROM {{table:Identifier}} WHERE {ROWS_OF_BATCH} AND generation < {{generation:UInt32}}"  # noqa: S608


@dataclass(frozen=True)
class Body:
    """A batch to be sent as this generation: one Arrow file of *size* bytes, with the columns of a proof's *version*.

    Its pieces can be taken once, so that nothing keeps them while they are sent.
    """

    generation: int
    version: int
    pieces: Iterator[memoryview]
    size: int


class _Pieces(RawIOBase):
    """A file that keeps what is written as it comes: Arrow's large buffers themselves, not copies of them."""

    def __init__(self) -> None:
        self.kept: list[memoryview] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self.kept.append(memoryview(piece))
        return len(piece)


def deduplication_token(client: EventLogClient, batch_id: UUID, generation: int) -> str:
    """Return the token under which ClickHouse recognises this generation of the batch."""
    return f"{_tokens_of(client, batch_id)}{generation}"


def _tokens_of(client: EventLogClient, batch_id: UUID, *, into: str = "table") -> str:
    # A copy of a ledger has the same batches; under another source they are other rows.
    source = f"{client.source}:" if client.source else ""
    return f"{client.names[into]}:{source}{batch_id}:"


def insert_generation(
    client: EventLogClient,
    body: Body,
    *,
    lease: Lease,
    identity: LedgerIdentity,
    not_after: str,
    into: str = "table",
) -> None:
    """Insert the whole batch as one generation; *body* is its events `as_arrow`, taken here.

    *not_after* is its deadline (`clickhouse.deadline`), *into* the role of the table (`EventLogClient.names`). Coming
    back means that ClickHouse took the request, not that the rows are there. Raises FencedError when a later attempt
    has begun, TransientError when it comes too late, ConfigurationError when the log is not this ledger's, WitnessError
    when the ledger was adopted elsewhere, else the kinds of `clickhouse.errors`.
    """
    batch_id, generation, attempt = lease.batch_id, body.generation, lease.attempt
    settings = {
        **BATCH_INSERT,
        "insert_deduplication_token": f"{_tokens_of(client, batch_id, into=into)}{generation}",
        "query_id": f"outbox-{batch_id}-{generation}-{attempt}",
        "log_comment": json.dumps(
            {
                "source": client.source,
                "ledger_id": str(identity.ledger_id),
                "batch_id": str(batch_id),
                "generation": generation,
                "attempt": attempt,
            }
        ),
    }
    named = {
        "batch_id": str(batch_id),
        "generation": generation,
        "attempt": attempt,
        "ledger_id": str(identity.ledger_id),
        "floor": identity.floor,
        "not_after": not_after,
    }
    client.run(_fenced_insert(body.version, into), named, settings=settings, body=body.pieces)


@cache
def _fenced_insert(version: int, into: str) -> str:
    return f"INSERT INTO {{{into}:Identifier}} {into_columns(version)}\n{_FENCED}"


def into_columns(version: int = PROOF_VERSION) -> str:
    """Return what stands behind INSERT INTO and a table: each row of a file `as_arrow`, as one of the client's source.

    *version* is that of the proof which the batch was frozen with. Takes the parameters `batch_id` and `generation`;
    `loaded_at` is the server's.
    """
    columns = sent_columns(version)
    names = ", ".join(column.name for column in columns)
    values = ", ".join(map(_value, columns))
    structure = ", ".join(f"{column.name} {_type_in_file(column)}" for column in _in_file(version)).replace("'", "\\'")
    return f"({names}, source)\nSELECT {values}, {{source:String}} FROM input('{structure}')"


def _in_file(version: int) -> list[EventColumn]:
    return [column for column in sent_columns(version) if column.filled_by is not FilledBy.DELIVERY]


def _type_in_file(column: EventColumn) -> str:
    return _ID_IN_FILE if column.kind == "uuid" else COLUMNS[column.name]


def _value(column: EventColumn) -> str:
    if column.filled_by is FilledBy.DELIVERY:
        return f"{{{column.name}:{COLUMNS[column.name]}}}"
    return _ID_OF_FILE.format(name=column.name) if column.kind == "uuid" else column.name


def raise_fence(client: EventLogClient, batch_id: UUID, attempt: int) -> None:
    """Refuse inserts of lower attempts on this batch from now on, then wait out those already running.

    Only what began before the fence can still write; raises InDoubtError while such a request runs, to be asked again.
    """
    client.run(
        "INSERT INTO {fence:Identifier} (source, batch_id, attempt)"
        " VALUES ({source:String}, {batch_id:UUID}, {attempt:UInt32})",
        {"batch_id": str(batch_id), "attempt": attempt},
    )
    seconds = seconds_of_insert(client, batch_id=batch_id)
    if seconds is not None:
        raise InDoubtError(
            f"An earlier insert of batch {batch_id} still runs in ClickHouse (for {seconds:.0f} s): waiting until it "
            "ends before looking."
        )


def seconds_of_insert(
    client: EventLogClient, *, batch_id: UUID | None = None, not_of: UUID | None = None
) -> float | None:
    """Return for how many seconds the oldest insert into the source's rows has been running, None when none does.

    Of *batch_id* alone where it is given, and without those of ledger *not_of*. An insert says whose it is in its
    `log_comment`; one that does not was sent by an earlier release and is taken for another ledger's. ClickHouse shows
    a user without SHOW PROCESSES only the user's own.
    """
    token = f"{client.table}:" if batch_id is None else _tokens_of(client, batch_id)
    running = client.rows(_RUNNING, {"token": token, "not_of": str(not_of)})
    return max((float(row["elapsed"]) for row in running), default=None)


def delete_older_generations(client: EventLogClient, batch: Batch, generation: int) -> None:
    """Delete the batch's rows of generations below *generation* and wait until they are gone.

    A run frozen before this statement can wake up an hour later and do no harm: newer rows are out of its reach.
    """
    for window in windows_of_batch(batch):
        client.run(_DELETE_OLDER, {**window, "generation": generation})


def as_arrow(events: pa.Table, generation: int, *, version: int = PROOF_VERSION) -> Body:
    """Return extracted events as rows of the event log in one Arrow file, the same bytes for the same arguments.

    *version* is that of the proof which the batch was frozen with.
    """
    rows = pa.table({column.name: _sent(events, column) for column in _in_file(version)}).combine_chunks()
    # One record batch, so that ClickHouse makes one block of it: blocks commit one by one.
    sink = _Pieces()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(sink, rows.schema, options=options) as writer:
        writer.write_table(rows, max_chunksize=ONE_BLOCK_ROWS)
    return Body(generation, version, iter(sink.kept), sum(map(len, sink.kept)))


def _sent(events: pa.Table, column: EventColumn) -> pa.Array | pa.ChunkedArray:
    # The table's numbers have no sign, and its texts are empty where PostgreSQL has no value.
    if column.kind == "uuid":
        return _as_held(events)
    values = events[column.name]
    if column.kind == "number":
        return values.cast(pa.uint64())
    return values.fill_null("") if column.may_be_missing else values


def _as_held(events: pa.Table) -> pa.Array:
    """Return the events' ids as ClickHouse holds a UUID: two numbers of 64 bits, each with its lowest byte first."""
    words = np.column_stack(id_words(events)).astype("<u8", copy=False)
    return pa.Array.from_buffers(pa.binary(16), len(words), [None, pa.py_buffer(words)])
