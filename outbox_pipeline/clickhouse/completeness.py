"""The table that tells analysts how far each day is delivered: `<table>_completeness`, and the view to read it by.

Invariant: of a source's day the row with the latest `written_at` counts, in whatever order the writes arrive; the view
`<table>_delivered` shows that row and no other.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Any

from outbox_pipeline.batches import LedgerIdentity
from outbox_pipeline.clickhouse.client import EventLogClient, in_steps
from outbox_pipeline.clickhouse.errors import ADOPTED_WORDS, FOREIGN_WORDS
from outbox_pipeline.clickhouse.grants import hidden_problem
from outbox_pipeline.clickhouse.owner import OWNERS
from outbox_pipeline.clickhouse.witness import ADOPTED_AT
from outbox_pipeline.days import FIRST_DAY, LAST_DAY, DeliveredDay

_COLUMNS = {
    "day": "Date",
    "complete_through": "DateTime64(6, 'UTC')",
    "event_count": "UInt64",
    "batch_count": "UInt64",
    "undelivered_count": "UInt64",
    "quarantined_count": "UInt64",
    "discarded_count": "UInt64",
    "replaced_count": "UInt64",
    "id_sum": "UInt64",
    "position_sum": "UInt64",
    "context_sum": "UInt64",
    "written_at": "DateTime64(6, 'UTC')",
}

_IS_COMPLETE = "complete_through >= toDateTime64(toDate32(day) + 1, 6, 'UTC') AS is_complete"

_STRUCTURE = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items()).replace("'", "\\'")

# Only constants of this package are put into the text; values are parameters.
_INSERT = f"""
INSERT INTO {{completeness:Identifier}} ({", ".join(_COLUMNS)}, source)
SELECT {", ".join(_COLUMNS)}, {{source:String}} FROM input('{_STRUCTURE}')
WHERE throwIf(({OWNERS}) != [{{ledger_id:UUID}}], '{FOREIGN_WORDS}') = 0
AND throwIf(({ADOPTED_AT}) > {{floor:UInt64}}, '{ADOPTED_WORDS}') = 0
FORMAT JSONEachRow
""".strip()  # noqa: S608 - see above

_READ = f"""
SELECT {", ".join(_COLUMNS)}, {_IS_COMPLETE}
FROM {{completeness:Identifier}} FINAL
WHERE source = {{source:String}} AND day BETWEEN {{from_day:Date}} AND {{until_day:Date}}
ORDER BY day
"""  # noqa: S608 - see above

_DROP = """
DELETE FROM {completeness:Identifier}
WHERE source = {source:String} AND day IN {days:Array(Date)}
    AND written_at > {written_after:DateTime64(6, 'UTC')}
"""


def delivered_problem(client: EventLogClient) -> str | None:
    """Return in one sentence what keeps days from being written, None when all is well."""
    rows = client.rows(
        "SELECT name, engine FROM system.tables WHERE database = currentDatabase()"
        " AND name IN ({completeness:String}, {delivered:String})"
    )
    found = {row["name"]: row["engine"] for row in rows}
    for role, engine in (("completeness", "ReplacingMergeTree"), ("delivered", "View")):
        name = client.names[role]
        if name not in found:
            hidden = hidden_problem(client, [role])
            return hidden or f"{client.where} has no table or view {name}: run 'outbox init'."
        if found[name] != engine:
            return f"{name} has engine {found[name]} instead of {engine}: rename it, then run 'outbox init'."
    return None


def write_days(client: EventLogClient, days: Sequence[dict[str, Any]], *, identity: LedgerIdentity) -> None:
    """Add one row for each of these days, which replaces the day's earlier ones; keys are the table's columns.

    Raises ConfigurationError when the table is not this ledger's at that moment, WitnessError when the ledger was
    adopted elsewhere.
    """
    body = "\n".join(json.dumps({name: _as_text(day[name]) for name in _COLUMNS}) for day in days)
    named = {"ledger_id": str(identity.ledger_id), "floor": identity.floor}
    client.run(_INSERT, named, body=[body.encode()])


def drop_days(client: EventLogClient, days: Sequence[date], *, written_after: datetime) -> None:
    """Delete what was told of these days after a time, and wait until it is gone."""
    for some in in_steps(days):
        client.run(_DROP, {"days": [day.isoformat() for day in some], "written_after": _as_text(written_after)})


def read_delivered(
    client: EventLogClient, *, from_day: date = FIRST_DAY, until_day: date = LAST_DAY
) -> list[DeliveredDay]:
    """Return the days from one to another, both included, oldest first."""
    rows = client.rows(_READ, {"from_day": from_day.isoformat(), "until_day": until_day.isoformat()})
    return [_as_day(row) for row in rows]


def as_row(day: object, *, written_at: datetime) -> dict[str, Any]:
    """Return what `write_days` takes of a dataclass with the table's columns."""
    return asdict(day) | {"written_at": written_at}  # type: ignore[call-overload, no-any-return]


def _as_text(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S.%f")
    return value.isoformat() if isinstance(value, date) else value


def _as_day(row: dict[str, Any]) -> DeliveredDay:
    # The driver hands times of a UTC column over without their zone.
    times = {name: row[name].replace(tzinfo=UTC) for name in ("complete_through", "written_at")}
    return DeliveredDay(**row | times | {"is_complete": bool(row["is_complete"])})
