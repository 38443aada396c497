"""The table by which ClickHouse is a witness of the ledger: `<table>_ledger`, a row for each attempt about to send.

A ledger that was set back, or a copy of it, gives the same numbers to other batches. Invariant: a batch's row stands
here before its first byte is sent, and rows are never changed; an attempt that has written one reads what others have
written since. Nothing here knows what a row means for a ledger, `relay.witness` does.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from outbox_pipeline.clickhouse.client import EventLogClient, in_steps
from outbox_pipeline.clickhouse.deadline import NOT_AFTER, lasting

#: In place of a batch: the ledger was adopted under this number.
ADOPTION = UUID(int=0)
#: Above every number.
_BEYOND = 2**64 - 1

_INSERT = "INSERT INTO {ledger:Identifier} (source, cut_number, batch_id, ledger_id) FORMAT JSONEachRow"

_FROM_SINCE = """
FROM {ledger:Identifier}
WHERE source = {source:String} AND (cut_number >= {since:UInt64} OR cut_number IN {numbers:Array(UInt64)})
""".rstrip()
_SINCE = f"SELECT DISTINCT cut_number, batch_id{_FROM_SINCE}"
_SINCE_WITH_DEADLINE = f"SELECT DISTINCT cut_number, batch_id, {NOT_AFTER}{_FROM_SINCE}"

_NEWEST = """
SELECT cut_number, batch_id FROM {ledger:Identifier}
WHERE source = {source:String}
ORDER BY source DESC, cut_number DESC
LIMIT {limit:UInt32}
"""

_HIGHEST = "SELECT max(cut_number) AS highest FROM {ledger:Identifier} WHERE source = {source:String}"

_ROWS_SINCE = """
SELECT count() AS row_count FROM {ledger:Identifier} WHERE source = {source:String} AND cut_number >= {since:UInt64}
"""

#: In an insert: the number of the latest adoption at that moment, 0 for none, to be compared with the sender's.
ADOPTED_AT = f"""
SELECT max(cut_number) FROM {{ledger:Identifier}}
WHERE source = {{source:String}} AND batch_id = toUUID('{ADOPTION}')
""".strip()  # noqa: S608 - a constant

_BELOW = "source = {source:String} AND cut_number < {below:UInt64} AND batch_id != {adoption:UUID}"
_COUNT = f"SELECT count() AS row_count FROM {{ledger:Identifier}} WHERE {_BELOW}"  # noqa: S608 - a constant
_DROP = f"DELETE FROM {{ledger:Identifier}} WHERE {_BELOW}"  # noqa: S608 - a constant


@dataclass(frozen=True)
class Cut:
    """A number and the batch that has it, as some ledger said; `batch_id` is ADOPTION for none."""

    cut_number: int
    batch_id: UUID


def add_cuts(client: EventLogClient, cuts: Sequence[Cut], ledger_id: UUID) -> None:
    """Write that this ledger gave these numbers to these batches, in one insert, on disk when it comes back."""
    rows = [
        {
            "source": client.source,
            "cut_number": cut.cut_number,
            "batch_id": str(cut.batch_id),
            "ledger_id": str(ledger_id),
        }
        for cut in cuts
    ]
    client.run(_INSERT, body=["\n".join(map(json.dumps, rows)).encode()])


def cuts_since(client: EventLogClient, number: int) -> Iterator[list[Cut]]:
    """Yield all cuts from a number on, in blocks and in no order."""
    for block in client.blocks(_SINCE, {"since": number, "numbers": []}):
        yield [Cut(int(cut_number), batch_id) for cut_number, batch_id in block]


def look_before_sending(
    client: EventLogClient, number: int, *, further: Collection[int], lease_seconds: float
) -> Iterator[tuple[list[Cut], str]]:
    """Yield as `cuts_since`, those of some *further* numbers too, and each time the deadline of an insert sent now."""
    for step, numbers in enumerate(list(in_steps(sorted(further))) or [[]]):
        named = {"since": _BEYOND if step else number, "numbers": numbers, "lasting": lasting(lease_seconds)}
        for block in filter(None, client.blocks(_SINCE_WITH_DEADLINE, named)):
            yield [Cut(int(cut_number), batch_id) for cut_number, batch_id, _ in block], str(block[0][2])


def newest_cuts(client: EventLogClient, limit: int) -> list[Cut]:
    """Return the cuts with the highest numbers, at most *limit* rows of them."""
    return [Cut(int(row["cut_number"]), row["batch_id"]) for row in client.rows(_NEWEST, {"limit": limit})]


def highest_number(client: EventLogClient) -> int:
    """Return the highest number that any ledger has written, 0 for none."""
    return int(client.rows(_HIGHEST)[0]["highest"])


def latest_adoption(client: EventLogClient) -> int:
    """Return the number of the latest adoption on record, 0 for none."""
    return int(client.rows(f"SELECT ({ADOPTED_AT}) AS adopted")[0]["adopted"])


def count_rows_since(client: EventLogClient, number: int) -> int:
    """Return how many rows there are from a number on; each attempt and each adoption has written one."""
    return int(client.rows(_ROWS_SINCE, {"since": number})[0]["row_count"])


def drop_cuts(client: EventLogClient, *, below: int) -> int:
    """Delete the cuts with lower numbers than *below* and wait until they are gone; adoptions stay. Return how many."""
    named = {"below": below, "adoption": str(ADOPTION)}
    count = int(client.rows(_COUNT, named)[0]["row_count"])
    if count:
        client.run(_DROP, named)
    return count
