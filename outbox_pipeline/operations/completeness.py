"""Tell analysts in ClickHouse how far each day is delivered.

Invariant: `complete_through` is never later than the truth. Every committed event of the day recorded before it is in
the event log or counted as quarantined at `written_at`; transactions that are still open, late commits, batches on
their way or parked, and batches that are being delivered again all hold it back. A write that is lost or comes late
changes nothing but how fresh the table is, and no delivery depends on it.

What was written later than PostgreSQL's now was written under a clock that was ahead, or was set back since. It may say
too much, and being the latest it would hide every true row until its time has come: it goes, and those days are told
anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta

from outbox_pipeline.clickhouse.completeness import as_row, delivered_problem, drop_days, read_delivered, write_days
from outbox_pipeline.counts import counted
from outbox_pipeline.days import DayCompleteness, DeliveredDay
from outbox_pipeline.errors import ConfigurationError, LostDeliveriesError
from outbox_pipeline.postgres.completeness import Wanted, observe, read_day_completeness
from outbox_pipeline.postgres.conditions import read_conditions, require_sound
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.relay.lost_log import require_log_version
from outbox_pipeline.relay.witness import loss_problem, read_claimed, require_own
from outbox_pipeline.stores import Stores

#: Changes older than the last write by less than this are looked at again: a transaction's times are a little older
#: than its commit.
_OVERLAP = timedelta(hours=1)


@dataclass(frozen=True)
class Recorded:
    """What one write told; `watermark` is the time before which no event can still appear.

    `retold_count`: days of which something was told under another clock.
    """

    watermark: datetime
    written_at: datetime
    days: tuple[DayCompleteness, ...]
    retold_count: int = 0

    def summary(self) -> str:
        """Say it in one line."""
        behind = sum(bool(day.undelivered_count) for day in self.days)
        days = f"{counted(len(self.days), 'day')} written, {behind} of them with events on their way"
        retold = f"; {self.retold_count} told anew, because PostgreSQL's clock was ahead" if self.retold_count else ""
        return f"{days}{retold}; no event recorded before {self.watermark:%Y-%m-%d %H:%M:%S} UTC is unseen"


def record_completeness(stores: Stores) -> Recorded:
    """Write how far each day is delivered: today, days not complete yet, and days that changed since the last write.

    Days of which something was written later than now are written anew, and that is deleted before.

    Safe to repeat and to run from several processes at once. Raises ConfigurationError when the table or the log is
    missing or another outbox's (the last to write a day is believed), LedgerError when the ledger's conditions do not
    hold, LostDeliveriesError when ClickHouse has lost deliveries, WitnessError when it has some that this ledger does
    not know, TransientError when a side does not answer; nothing of a delivery is touched in any case.
    """
    require_log_version(stores.engine, stores.client)
    problem = delivered_problem(stores.client)
    if problem is not None:
        raise ConfigurationError(problem)
    problem = loss_problem(stores)
    if problem is not None:
        raise LostDeliveriesError(problem)
    seen = read_claimed(stores)
    told = read_delivered(stores.client)
    with ledger_transaction(stores.engine, lock_timeout_seconds=stores.settings.lock_timeout_seconds) as connection:
        check_version(connection)
        conditions = read_conditions(connection)
        require_sound(conditions)
        require_own(connection, stores.client.table, seen)
        written_at, watermark = observe(connection)
        today = written_at.astimezone(UTC).date()
        known = {day.day: day for day in told if day.written_at <= written_at}
        retold = [day.day for day in told if day.written_at > written_at]
        found = read_day_completeness(
            connection,
            _wanted(known, retold, today),
            watermark=watermark,
            until_day=today,
            first_day=conditions.first_day(stores.settings.start_date),
        )
    news = tuple(day for day in found if _is_news(day, known.get(day.day), today))
    if retold:
        drop_days(stores.client, retold, written_after=written_at)
    if news:
        rows = [as_row(day, written_at=written_at) for day in news]
        write_days(stores.client, rows, identity=conditions.identity)
    return Recorded(watermark, written_at, news, len(retold))


def _wanted(known: Mapping[date, DeliveredDay], retold: Sequence[date], today: date) -> Wanted:
    past = [day for day in known if day <= today]
    if not past:
        return Wanted(None, frozenset({*known, *retold}), None)
    incomplete = {day.day for day in known.values() if not day.is_complete}
    # A write that broke off between its two statements has left days out.
    missing = {min(past) + timedelta(days=n) for n in range((today - min(past)).days)} - set(known)
    since = max(day.written_at for day in known.values()) - _OVERLAP
    return Wanted(max(past), frozenset({*incomplete, *missing, *retold}), since)


def _is_news(day: DayCompleteness, known: DeliveredDay | None, today: date) -> bool:
    if day.day > today and not _has_events(day):
        return False
    if known is None or not known.is_complete:
        return True
    told = asdict(known)
    return any(told[name] != value for name, value in asdict(day).items())


def _has_events(day: DayCompleteness) -> bool:
    counts = (day.event_count, day.undelivered_count, day.quarantined_count, day.discarded_count, day.replaced_count)
    return any(counts)
