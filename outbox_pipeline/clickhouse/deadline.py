"""Until when an insert may begin, by ClickHouse's own clock; one that comes later refuses itself.

A request may be held back on its way, by a proxy or a queue, until its attempt is long over. Invariant: the deadline is
read from the clock that the insert compares it with, right before each sending, so neither our clock nor the age of the
attempt counts. ClickHouse compares once, when it begins the insert: how long the insert then takes does not matter.
"""

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.errors import LATE_WORDS

#: How much longer than a lease an insert may be on its way.
GRACE_SECONDS = 60

#: In a query: the latest moment at which an insert may begin that is sent now.
NOT_AFTER = "toString(now64(6, 'UTC') + toIntervalMillisecond({lasting:UInt64})) AS not_after"

#: In an insert: whether it comes in time.
IS_IN_TIME = f"throwIf(now64(6, 'UTC') > {{not_after:DateTime64(6, 'UTC')}}, '{LATE_WORDS}') = 0"


def lasting(lease_seconds: float) -> int:
    """Return the milliseconds that an insert may be on its way under a lease of this length, for `NOT_AFTER`."""
    return int((lease_seconds + GRACE_SECONDS) * 1000)


def read_deadline(client: EventLogClient, lease_seconds: float) -> str:
    """Ask ClickHouse for the deadline of an insert that is sent now: a moment of its own clock, in UTC."""
    (row,) = client.rows(f"SELECT {NOT_AFTER}", {"lasting": lasting(lease_seconds)})
    return str(row["not_after"])
