"""The table that says whose the event log is: `<table>_sources`, rows of each claim and one for its end.

A source on a table belongs to one ledger. Invariant: a claim is written once to be seen and, after a look that showed
no other ledger's, a second time to be relied on; what ends it is a row of the same ledger and time with `retired_at`.
Only a claim that was written once is taken back, by the process that wrote it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from outbox_pipeline.clickhouse.client import EventLogClient

_READ = """
SELECT ledger_id, registered_at, any(label) AS label, max(retired_at) AS ended_at,
       count() - count(retired_at) > 1 AS is_confirmed
FROM {sources:Identifier}
WHERE source = {source:String}
GROUP BY ledger_id, registered_at
ORDER BY registered_at, ledger_id
"""

#: In an insert: the ledgers that own its source at that moment, to be compared with the sender's.
OWNERS = """
SELECT groupUniqArray(ledger_id) FROM (
    SELECT ledger_id FROM {sources:Identifier} WHERE source = {source:String}
    GROUP BY ledger_id, registered_at HAVING count(retired_at) = 0
)
""".strip()

_COLUMNS = ("source", "ledger_id", "label", "registered_at", "retired_at")
_INSERT = f"INSERT INTO {{sources:Identifier}} ({', '.join(_COLUMNS)}) FORMAT JSONEachRow"

_DROP = """
DELETE FROM {sources:Identifier}
WHERE source = {source:String} AND ledger_id = {ledger_id:UUID}
    AND registered_at = {registered_at:DateTime64(6, 'UTC')}
"""


@dataclass(frozen=True)
class Claim:
    """One ledger's claim to the source; it holds until it is retired. Times are ClickHouse's.

    `is_confirmed`: it was written again after a look that showed no other ledger's.
    """

    ledger_id: UUID
    label: str
    registered_at: datetime
    retired_at: datetime | None = None
    is_confirmed: bool = False


def read_claims(client: EventLogClient) -> list[Claim]:
    """Return every claim there ever was to the source, oldest first."""
    return [_as_claim(row) for row in client.rows(_READ)]


def holding(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims that are not retired; nearly always there is one."""
    return [claim for claim in claims if claim.retired_at is None]


def new_claim(client: EventLogClient, ledger_id: UUID, label: str) -> Claim:
    """Return a claim of this moment, not written yet."""
    return Claim(ledger_id, label, _now(client))


def add_claims(client: EventLogClient, claims: Sequence[Claim], *, retiring: Sequence[Claim] = ()) -> None:
    """Write new claims and the ends of others in one insert, which readers see whole or not at all."""
    ended = [replace(claim, retired_at=_now(client)) for claim in retiring]
    _insert(client, [*ended, *claims])


def confirm_claim(client: EventLogClient, claim: Claim) -> None:
    """Write a claim again, so that this ledger may rely on it; it is taken back no more."""
    _insert(client, [claim])


def drop_claim(client: EventLogClient, claim: Claim) -> None:
    """Take a claim back, as if it had never been made, and wait until it is gone."""
    client.run(
        _DROP,
        {"ledger_id": str(claim.ledger_id), "registered_at": _as_text(claim.registered_at)},
    )


def _insert(client: EventLogClient, claims: Sequence[Claim]) -> None:
    body = "\n".join(json.dumps({"source": client.source, **_as_row(claim)}) for claim in claims)
    client.run(_INSERT, body=[body.encode()])


def _now(client: EventLogClient) -> datetime:
    (row,) = client.rows("SELECT now64(6, 'UTC') AS now")
    return _as_time(row["now"])


def _as_claim(row: dict[str, object]) -> Claim:
    retired_at = row["ended_at"]
    return Claim(
        ledger_id=row["ledger_id"],  # type: ignore[arg-type]
        label=str(row["label"]),
        registered_at=_as_time(row["registered_at"]),
        retired_at=None if retired_at is None else _as_time(retired_at),
        is_confirmed=bool(row["is_confirmed"]),
    )


def _as_time(value: object) -> datetime:
    # The driver hands times of a UTC column over without their zone.
    assert isinstance(value, datetime)
    return value.replace(tzinfo=UTC)


def _as_row(claim: Claim) -> dict[str, object]:
    return {
        "ledger_id": str(claim.ledger_id),
        "label": claim.label,
        "registered_at": _as_text(claim.registered_at),
        "retired_at": None if claim.retired_at is None else _as_text(claim.retired_at),
    }


def _as_text(value: datetime) -> str:
    return value.strftime("%Y-%m-%d %H:%M:%S.%f")
