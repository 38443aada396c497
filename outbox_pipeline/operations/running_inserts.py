"""Wait for inserts that ClickHouse had begun before other instances, or other ledgers, were shut out.

What begins later refuses itself, so the first look that shows none is enough.
"""

from uuid import UUID

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.load import seconds_of_insert
from outbox_pipeline.processes import wait_until

#: Longest wait; most inserts take seconds.
MAX_SECONDS = 60


def wait_for_inserts(client: EventLogClient, *, not_of: UUID | None = None) -> float | None:
    """Wait until no insert into the source's rows runs, those of ledger *not_of* left out.

    Returns None then, or after MAX_SECONDS for how many seconds the oldest has been running.
    """
    seconds: float | None = None

    def have_ended() -> bool:
        nonlocal seconds
        seconds = seconds_of_insert(client, not_of=not_of)
        return seconds is None

    wait_until(have_ended, seconds=MAX_SECONDS, pause=0.2)
    return seconds
