"""Statements on the watermark: the time before which no event can still appear that was not seen.

Invariant: each look reads the clock, then which transactions may still insert, then the events, in a statement each. A
transaction that is not among the holders either ended before the events were read, and they show what it committed, or
inserts after the clock was read. One that is among them recorded nothing before the last look that did not show it.
No look is taken under a clock that is ahead of this host's: what it says of the days in between would not be true.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Connection, func, select

from outbox_pipeline.days import DayCompleteness
from outbox_pipeline.errors import TransientError
from outbox_pipeline.postgres.cut import read_holders
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import watermark

#: Pending events looked at; beyond it the oldest of them bounds every day.
MAX_PENDING = 1_000_000

#: PostgreSQL's clock may be ahead of this host's by so much.
MAX_AHEAD = timedelta(minutes=1)


@dataclass(frozen=True)
class Wanted:
    """Which days to look at: all between two, and those that are named or have changed since a time.

    Without `from_day` they begin with the ledger's first.
    """

    from_day: date | None
    days: frozenset[date]
    since: datetime | None


def observe(connection: Connection) -> tuple[datetime, datetime]:
    """Move the watermark on; return the clock it was taken at, and the watermark itself.

    Locks the watermark's row until the transaction ends, so that looks follow each other. Raises TransientError while
    PostgreSQL's clock is ahead.
    """
    connection.execute(select(watermark.c.is_only_row).with_for_update())
    observed_at: datetime = connection.scalars(select(func.clock_timestamp())).one()
    _require_not_ahead(observed_at, datetime.now(UTC))
    holders = read_holders(connection)
    found = connection.scalars(query("watermark"), {"observed_at": observed_at, "holders": holders}).one()
    return observed_at, found


def _require_not_ahead(at: datetime, here: datetime) -> None:
    # Read after the server's, this host's clock shows more where both are right.
    if at - here > MAX_AHEAD:
        raise TransientError(
            f"PostgreSQL's clock shows {at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC and this host's "
            f"{here:%Y-%m-%d %H:%M:%S} UTC, so nothing is said of what is complete: let NTP set the one that is wrong."
        )


def read_day_completeness(
    connection: Connection, wanted: Wanted, *, watermark: datetime, until_day: date, first_day: date
) -> list[DayCompleteness]:
    """Return the wanted days, oldest first. Its own statement, after `observe` in the same transaction."""
    rows = connection.execute(
        query("delivered_days"),
        {
            "watermark": watermark,
            "from_day": wanted.from_day,
            "until_day": until_day,
            "first_day": first_day,
            "days": sorted(wanted.days),
            "since": wanted.since,
            "limit": MAX_PENDING,
        },
    )
    sums = ("id_sum", "position_sum", "context_sum")
    return [DayCompleteness(**dict(row) | {name: int(row[name]) for name in sums}) for row in rows.mappings()]
