"""When each event became visible in ClickHouse, by asking it several times a second.

How it is measured: a thread counts rows by batch every POLL_SECONDS; for a batch that shows more than before it fetches
the ids, and notes the clock after the answer. So a time is never too early, and too late by at most the pause and two
short queries. `loaded_at` would flatter: ClickHouse sets it when an insert starts, not when its rows can be read.
Commit times come from the same machine's clock.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from outbox_pipeline.clickhouse.client import EventLogClient, open_client
from outbox_pipeline.errors import OutboxError
from outbox_pipeline.settings import Settings

POLL_SECONDS = 0.25

_COUNT = """
SELECT batch_id, count() AS row_count FROM {table:Identifier}
WHERE source = {source:String} AND position > {after:UInt64} GROUP BY batch_id
"""
_IDS = """
SELECT event_id FROM {table:Identifier}
WHERE source = {source:String} AND position > {after:UInt64} AND batch_id IN {batch_ids:Array(UUID)}
"""


class Arrivals:
    """First sight of every event at positions after `after`, in Unix seconds; filled by `watching_arrivals`."""

    def __init__(self, client: EventLogClient, *, after: int) -> None:
        """Look at nothing yet."""
        self.seen: dict[UUID, float] = {}
        self._client = client
        self._after = after
        self._counts: dict[UUID, int] = {}

    def look(self) -> None:
        """Note what has become visible since the last look."""
        rows = self._client.rows(_COUNT, {"after": self._after})
        counts = {row["batch_id"]: int(row["row_count"]) for row in rows}
        grown = [batch_id for batch_id, count in counts.items() if count != self._counts.get(batch_id)]
        if not grown:
            return
        rows = self._client.rows(_IDS, {"after": self._after, "batch_ids": grown})
        now = time.time()
        for row in rows:
            self.seen.setdefault(row["event_id"], now)
        self._counts = counts

    def keep_looking(self, stopped: threading.Event) -> None:
        """Look until *stopped*, and past moments in which ClickHouse does not answer or has no table."""
        while not stopped.wait(POLL_SECONDS):
            try:
                self.look()
            except OutboxError:
                continue


@contextmanager
def watching_arrivals(settings: Settings, *, after: int) -> Iterator[Arrivals]:
    """Watch ClickHouse during the block, in a thread with a connection of its own."""
    client = open_client(settings)
    arrivals, stopped = Arrivals(client, after=after), threading.Event()
    thread = threading.Thread(target=arrivals.keep_looking, args=(stopped,), name="arrivals")
    thread.start()
    try:
        yield arrivals
    finally:
        stopped.set()
        thread.join()
        client.close()
