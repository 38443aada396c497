"""Whether ClickHouse takes deliveries at this moment, as a tick of the sensor would find it.

Nothing remembers since when it does not: the ledger knows when ClickHouse last proved a delivery, and whoever looks
again and again knows when it first saw none.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine

from outbox_pipeline.errors import OutboxError, TransientError, first_line
from outbox_pipeline.monitoring.health import Answer
from outbox_pipeline.relay.witness import ask_seen
from outbox_pipeline.settings import Settings

#: A server may restart without an alert.
_RESTART = timedelta(seconds=60)
_SILENT = "ClickHouse does not answer: "


@dataclass(frozen=True)
class ClickHouseState:
    """What a look found: `problem` is None when it answers and has the log; `is_away` when it does not answer."""

    problem: str | None
    is_away: bool = False


def look_at_clickhouse(engine: Engine, settings: Settings) -> ClickHouseState:
    """Ask ClickHouse whether it has the log that is delivered into; takes a few seconds at most, and raises nothing."""
    try:
        ask_seen(engine, settings)
    except OutboxError as error:
        # Said by whoever shows it, with a time.
        said = first_line(error).removeprefix(_SILENT)
        return ClickHouseState(said, is_away=isinstance(error, TransientError))
    return ClickHouseState(None)


def is_for_long(since: datetime | None, now: datetime) -> bool:
    """Tell whether a problem that was first seen at *since* is more than a restart; None: nobody knows since when."""
    return since is None or now - since >= _RESTART


def judge_clickhouse(state: ClickHouseState, *, since: datetime | None, now: datetime) -> Answer:
    """Tell whether ClickHouse takes deliveries, and since when it was seen not to."""
    if state.problem is None:
        return Answer(True, "ClickHouse answers and has the event log.")
    what = "ClickHouse does not answer" if state.is_away else "Nothing can be delivered into ClickHouse"
    first_seen = "" if since is None else f" since {since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    after = " Events wait in PostgreSQL; bring it back, and the next ticks deliver." if state.is_away else ""
    said = f"{what}{first_seen}: {state.problem.rstrip('.')}.{after}"
    cause = f"{'away' if state.is_away else 'unfit'}{' for long' if is_for_long(since, now) else ''}"
    return Answer(False, said, cause)
