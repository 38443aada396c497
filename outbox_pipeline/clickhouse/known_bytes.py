"""A row of known bytes: sent as the events of a batch are, and read back.

What a server, its profile or a proxy makes of the form in which events travel stands in no version number: one has
turned both halves of every id round and answered OK. Invariant: the row goes by the statement, the encoding and the
settings of a batch, under a batch id of its own, into a table that forgets it after a day.
"""

from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import UUID

import pyarrow as pa

from outbox_pipeline.batches import Lease, LedgerIdentity
from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.load import as_arrow, insert_generation
from outbox_pipeline.errors import BatchDataError
from outbox_pipeline.event_schema import SENT, EventColumn, FilledBy, arrow_schema
from outbox_pipeline.ids import uuid7

_GENERATION = 1
#: It is no delivery: neither which instance of the ledger was adopted last nor how late it comes matters.
_ABOVE_ADOPTIONS = 2**64 - 1
_AT_ANY_TIME = "2200-01-01 00:00:00"

#: No two bytes of a number or an id are the same, texts have characters of one to four bytes, times microseconds.
_KNOWN: dict[str, Any] = {
    "event_type": "known_bytes é",
    "event_date_time": datetime(2001, 2, 3, 4, 5, 6, 789_012, tzinfo=UTC),
    "environment": "known_bytes €",
    "event_context": '{"text": "é€😀 \\u0000 \\"", "number": 1.50}',
    "metadata_version": 0x1112131415161718,
    "event_id": UUID("00112233-4455-6677-8899-aabbccddeeff"),
    "position": 0x2122232425262728,
    "recorded_at": datetime(2002, 3, 4, 5, 6, 7, 890_123, tzinfo=UTC),
    "trace_context": "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
}

#: What is compared: the batch's id is what the row is found by.
_COMPARED = [column for column in SENT if column.name != "batch_id"]

# Text of every value; an alias named like its column would be taken for it.
_SHOWN = f"""
SELECT [{", ".join(f"toString({column.name})" for column in _COMPARED)}] AS texts
FROM {{known_bytes:Identifier}}
WHERE source = {{source:String}} AND batch_id = {{batch_id:UUID}}
"""  # noqa: S608 - constants of this package


def known_bytes_problem(client: EventLogClient, ledger_id: UUID) -> str | None:
    """Send the row, read it back, and say what is wrong with what ClickHouse shows; None when it is as it was sent.

    *ledger_id* is the owner of the event log, as any insert has to name it. Raises what `insert_generation` does, but
    for the row's content.
    """
    lease, identity = Lease(uuid7(), 1, "known_bytes"), LedgerIdentity(ledger_id, _ABOVE_ADOPTIONS)
    body = as_arrow(_events(), _GENERATION)
    try:
        insert_generation(client, body, lease=lease, identity=identity, not_after=_AT_ANY_TIME, into="known_bytes")
    except BatchDataError as error:
        said = str(error).removeprefix(f"{client.where} refuses the content: ")
        return _sentence(client, f"refuses even a row of known bytes ({said})")
    shown = [row["texts"] for row in client.rows(_SHOWN, {"batch_id": str(lease.batch_id)})]
    if len(shown) != 1:
        return _sentence(client, f"shows {len(shown)} rows where one of known bytes was sent")
    wrong = [column.name for column, text in zip(_COMPARED, shown[0], strict=True) if text != _text(column)]
    return _sentence(client, f"shows other known bytes than were sent ({', '.join(wrong)})") if wrong else None


def _sentence(client: EventLogClient, what: str) -> str:
    return (
        f"{client.where} {what}, so the fault lies with its version ({client.driver.server_version}), its settings or "
        "a proxy before it, and with no event: look for what changes requests on their way, or use a version that "
        "docs/deploying.md names; until then nothing is delivered there."
    )


@cache
def _events() -> pa.Table:
    values = {name: value.bytes if isinstance(value, UUID) else value for name, value in _KNOWN.items()}
    return pa.Table.from_pylist([values], schema=arrow_schema())


def _text(column: EventColumn) -> str:
    """Return a known value as ClickHouse writes it."""
    if column.filled_by is FilledBy.DELIVERY:
        return str(_GENERATION)
    value = _KNOWN[column.name]
    return value.strftime("%Y-%m-%d %H:%M:%S.%f") if isinstance(value, datetime) else str(value)
