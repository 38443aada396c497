"""Tell analysts in ClickHouse how far each day is delivered.

Invariant: `complete_through` is never later than the truth. Every committed event of the day recorded before it is in
the event log or counted as quarantined at `written_at`; transactions that are still open, late commits, batches on
their way or parked, and batches that are being delivered again all hold it back. A write that is lost or comes late
changes nothing but how fresh the table is, and no delivery depends on it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta

from outbox_pipeline.clickhouse.delivered import DeliveredDay, as_row, delivered_problem, read_delivered, write_days
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.claim import read_conditions
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.postgres.watermark import LedgerDay, Wanted, observe, read_days
from outbox_pipeline.relay.cut import require_sound
from outbox_pipeline.relay.stores import Stores

#: Changes older than the last write by less than this are looked at again: a transaction's times are a little older
#: than its commit.
_OVERLAP = timedelta(hours=1)


@dataclass(frozen=True)
class Recorded:
    """What one write told; `watermark` is the time before which no event can still appear."""

    watermark: datetime
    written_at: datetime
    days: tuple[LedgerDay, ...]

    def summary(self) -> str:
        """Say it in one line."""
        behind = sum(bool(day.undelivered_count) for day in self.days)
        days = f"{len(self.days)} days written, {behind} of them with events on their way"
        return f"{days}; no event recorded before {self.watermark:%Y-%m-%d %H:%M:%S} UTC is unseen"


def record_completeness(stores: Stores) -> Recorded:
    """Write how far each day is delivered: today, days not complete yet, and days that changed since the last write.

    Safe to repeat and to run from several processes at once. Raises ConfigurationError when the table is missing,
    LedgerError when the ledger's conditions do not hold, TransientError when a side does not answer; nothing of a
    delivery is touched in any case.
    """
    problem = delivered_problem(stores.client)
    if problem is not None:
        raise ConfigurationError(problem)
    known = {day.day: day for day in read_delivered(stores.client)}
    with ledger_transaction(stores.engine, lock_timeout_seconds=stores.settings.lock_timeout_seconds) as connection:
        check_version(connection)
        require_sound(read_conditions(connection))
        written_at, watermark = observe(connection)
        found = read_days(
            connection,
            _wanted(known),
            watermark=watermark,
            until_day=written_at.astimezone(UTC).date(),
            first_day=stores.settings.start_date,
        )
    news = tuple(day for day in found if _is_news(day, known.get(day.day)))
    if news:
        write_days(stores.client, [as_row(day, written_at=written_at) for day in news])
    return Recorded(watermark, written_at, news)


def _wanted(known: Mapping[date, DeliveredDay]) -> Wanted:
    if not known:
        return Wanted(None, frozenset(), None)
    incomplete = frozenset(day.day for day in known.values() if not day.is_complete)
    return Wanted(max(known), incomplete, max(day.written_at for day in known.values()) - _OVERLAP)


def _is_news(day: LedgerDay, known: DeliveredDay | None) -> bool:
    if known is None or not known.is_complete:
        return True
    told = asdict(known)
    return any(told[name] != value for name, value in asdict(day).items())
