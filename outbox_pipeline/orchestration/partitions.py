"""The partitions of `event_log`: one a UTC day, by when PostgreSQL recorded the events."""

from datetime import date, timedelta

import dagster as dg

from outbox_pipeline.settings import load_settings, today

# Today's partition is still open; without the offset Dagster would refuse runs for it. One more day bears a clock of
# PostgreSQL that is ahead of Dagster's over midnight.
_DAYS_AHEAD = 2

recorded_days = dg.DailyPartitionsDefinition(
    start_date=load_settings().start_date.isoformat(), timezone="UTC", end_offset=_DAYS_AHEAD
)


def deliverable_days() -> tuple[date, date]:
    """Return the first and the last day that have a partition now."""
    return load_settings().start_date, today() + timedelta(days=_DAYS_AHEAD - 1)
