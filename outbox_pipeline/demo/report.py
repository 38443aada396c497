"""The comparison of both sides at the end of a demo, event by event.

Invariant: it rests on the writers' journal and on the rows themselves, never on what the pipeline says of its own work.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Engine, select

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.demo.writers import Journal
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.tables import quarantined_event

#: Events named in a report that is not clean, to be traced.
_SUSPECTS_SHOWN = 5

_ROWS = (
    "SELECT event_id, count() AS row_count FROM {table:Identifier}"
    " WHERE source = {source:String} AND position > {after:UInt64} GROUP BY event_id"
)


@dataclass(frozen=True)
class Found:
    """How often each event is there: rows in ClickHouse, and entries in quarantine."""

    rows: Mapping[UUID, int]
    quarantined: Mapping[UUID, int]


@dataclass(frozen=True)
class Comparison:
    """Counts of events, by id.

    `committed` and `rolled_back` come from the writers. `delivered` and `quarantined` are committed events found there,
    `missing` those found nowhere, `duplicated` those found more than once. `rolled_back_delivered`: events of rolled
    back transactions that were found at all. `misjudged`: malformed ones in ClickHouse, or good ones in quarantine.
    `suspects` names some of the events that are not where they should be.
    """

    committed: int
    rolled_back: int
    delivered: int
    quarantined: int
    missing: int
    duplicated: int
    rolled_back_delivered: int
    misjudged: int
    suspects: tuple[UUID, ...]

    @property
    def is_clean(self) -> bool:
        """True when every event is exactly where it belongs."""
        return not (self.missing or self.duplicated or self.rolled_back_delivered or self.misjudged)


@dataclass(frozen=True)
class Report:
    """A comparison, and how long things took in seconds.

    `seconds`: from when the UI answers until the comparison. `latency_…`: commit to visible in ClickHouse, without the
    opening event, whose time (`opening_event_seconds`) includes Dagster's start; None when nothing arrived.
    """

    comparison: Comparison
    seconds: float
    opening_event_seconds: float | None
    latency_p50_seconds: float | None
    latency_p95_seconds: float | None


def compare(journal: Journal, found: Found) -> Comparison:
    """Compare the writers' journal with what was found."""
    committed = set(journal.committed)
    delivered, quarantined = committed & found.rows.keys(), committed & found.quarantined.keys()
    times = {event_id: found.rows.get(event_id, 0) + found.quarantined.get(event_id, 0) for event_id in committed}
    missing = {event_id for event_id, count in times.items() if count == 0}
    duplicated = {event_id for event_id, count in times.items() if count > 1}
    rolled_back_found = journal.rolled_back & (found.rows.keys() | found.quarantined.keys())
    misjudged = (delivered & journal.malformed) | (quarantined - journal.malformed)
    return Comparison(
        committed=len(committed),
        rolled_back=len(journal.rolled_back),
        delivered=len(delivered),
        quarantined=len(quarantined),
        missing=len(missing),
        duplicated=len(duplicated),
        rolled_back_delivered=len(rolled_back_found),
        misjudged=len(misjudged),
        suspects=tuple(sorted(missing | duplicated | rolled_back_found | misjudged))[:_SUSPECTS_SHOWN],
    )


def look_at_both(engine: Engine, client: EventLogClient, *, after: int) -> Found:
    """Read what is in ClickHouse and in quarantine at positions above *after*."""
    rows = {row["event_id"]: int(row["row_count"]) for row in client.rows(_ROWS, {"after": after})}
    held = select(quarantined_event.c.event_id).where(
        quarantined_event.c.position > after, quarantined_event.c.status != "requeued"
    )
    with ledger_transaction(engine) as connection:
        return Found(rows, Counter(connection.execute(held).scalars()))


def latencies(committed: Mapping[UUID, float], seen: Mapping[UUID, float]) -> list[float]:
    """Return the seconds from commit to first sight of each event that was seen, shortest first."""
    return sorted(max(0.0, seen[event_id] - at) for event_id, at in committed.items() if event_id in seen)


def quantile(ordered: Iterable[float], share: float) -> float | None:
    """Return the value that *share* of the ordered values do not exceed, None without any."""
    values = list(ordered)
    return values[max(0, -int(-share * len(values) // 1) - 1)] if values else None
