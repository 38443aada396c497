"""The partitions of `event_log`: one a UTC day, by when PostgreSQL recorded the events.

They begin with the ledger's first day, which the process that starts the code server puts into its environment: the
definitions load without a database. Where it is not said they begin with OUTBOX_START_DATE.

Invariant: every day a batch can have belongs to exactly one partition. The first stands for all days before it too, and
the last for all after it, so that no batch waits for its day, which a clock that was ahead may have put far away.
"""

from datetime import date, timedelta

import dagster as dg

from outbox_pipeline.days import ALL_DAYS, Window
from outbox_pipeline.settings import load_settings, today

# Today's partition is still open; without the offset Dagster would refuse runs for it. One more day bears a clock of
# PostgreSQL that is ahead of Dagster's over midnight.
_DAYS_AHEAD = 2


def first_day() -> date:
    """Return the first day that has a partition."""
    settings = load_settings()
    # A ledger that was made under a clock that was ahead has a first day that is still to come.
    return settings.start_date if settings.first_day is None else min(settings.first_day, today())


recorded_days = dg.DailyPartitionsDefinition(start_date=first_day().isoformat(), timezone="UTC", end_offset=_DAYS_AHEAD)


def deliverable_days() -> tuple[date, date]:
    """Return the first and the last day that have a partition now; the last is before the first when none has."""
    return first_day(), today() + timedelta(days=_DAYS_AHEAD - 1)


def nearest_day(day: date) -> date:
    """Return the day under which batches of *day* are requested: itself where it has a partition."""
    first, last = deliverable_days()
    return max(first, min(day, last))


def days_of(partition: date) -> Window:
    """Return the days that a partition stands for now: its own, and those before the first or after the last."""
    first, last = deliverable_days()
    return Window(
        ALL_DAYS.first_day if partition == first else partition, ALL_DAYS.last_day if partition == last else partition
    )
