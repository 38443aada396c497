"""What one transaction that stays open does to delivery, ours and a status-column outbox, on the same engines.

`python -m benchmarks.held_xmin [--minutes N] [--rate EVENTS] [--publishing]`

Two outboxes get the same events at the same rate. Every few seconds, as Dagster's sensor does, first one and then the
other is drained, in turns, so that each drain has the machine to itself but for the producer. All the while one
transaction is open: a REPEATABLE READ reader, or with `--publishing` one that has published an event into both.
PostgreSQL may then remove no row version that is newer. `events_per_second` is events through the seconds that the
drains of ten seconds took; a minute's figure is the median of its drains.

The status-column outbox reads by ADBC and inserts Arrow as ours does; it claims with FOR UPDATE SKIP LOCKED through
a partial index of what is pending, and proves nothing. `dead_rows` is `n_dead_tup`, PostgreSQL's running count:
updates and deletes add to it, pruning subtracts, and VACUUM and ANALYZE set it to what they saw.
"""

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from uuid import UUID

import pyarrow as pa
from adbc_driver_postgresql import dbapi
from sqlalchemy import Connection, text

from benchmarks.common import fresh_stores, publish, save, vacuum
from outbox_pipeline.clickhouse.load import as_arrow, into_columns
from outbox_pipeline.postgres.conditions import read_conditions
from outbox_pipeline.postgres.conninfo import conninfo_of
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.extract import EVENT_SCHEMA
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores

_WARM_UP = 20_000
#: A pass of the relay that delivered as many may have left some.
_FULL = 100_000
_STATUS_TABLE = (
    "CREATE TABLE status_outbox (position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    " event_id uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE, event_type text NOT NULL,"
    " event_date_time timestamptz NOT NULL DEFAULT clock_timestamp(), environment text NOT NULL,"
    " event_context json NOT NULL, metadata_version bigint NOT NULL DEFAULT 1,"
    " recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(), trace_context text,"
    " status text NOT NULL DEFAULT 'pending')"
)
_STATUS_INDEX = "CREATE INDEX status_outbox_pending ON status_outbox (position) WHERE status = 'pending'"
_CLAIM = (
    "SELECT position, uuid_send(event_id) AS event_id, event_type, event_date_time, environment, event_context,"
    " metadata_version, recorded_at, trace_context FROM status_outbox"
    " WHERE status = 'pending' ORDER BY position LIMIT {most} FOR UPDATE SKIP LOCKED"
)
_MARK = "UPDATE status_outbox SET status = 'processed' WHERE position = ANY ($1::text::bigint[])"
_INSERT = f"INSERT INTO status_log {into_columns()} FORMAT Arrow"
_PUBLISH = {
    table: text(
        f"INSERT INTO {table} (event_type, environment, event_context)"  # noqa: S608 - one of two tables
        " SELECT 'type_' || n % 8, 'benchmark', replace(body, '#number#', n::text)::json"
        " FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n"
        " JOIN benchmark_context ON nth = n % 1000"
    )
    for table in ("outbox.event", "status_outbox")
}
_SEEN = text(
    "SELECT coalesce(sum(n_dead_tup), 0) AS dead_rows,"
    " coalesce(sum(pg_table_size(relid)), 0) AS table_bytes,"
    " coalesce(sum(pg_indexes_size(relid)), 0) AS index_bytes"
    " FROM pg_stat_all_tables WHERE schemaname || '.' || relname = ANY (:tables)"
)
_LEDGER = ["outbox.batch", "outbox.unclaimed", "outbox.gap"]


@dataclass
class Contender:
    """One outbox: how it is drained, the tables its deliverer writes to, and what its drains have come to."""

    drain: Callable[[], int]
    tables: list[str]
    samples: list[dict[str, float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    delivered: int = 0
    events: int = 0
    seconds: float = 0.0

    def work(self) -> None:
        """Drain once, timed."""
        started = time.perf_counter()
        count = self.drain()
        taken = time.perf_counter() - started
        self.rates.append(count / taken)
        self.seconds += taken
        self.events += count
        self.delivered += count

    def sample(self, connection: Connection, *, second: float, published: int) -> None:
        """Keep what the drains since the last sample did, and how the tables stand."""
        row = connection.execute(_SEEN, {"tables": self.tables}).one()
        self.samples.append(
            {
                "second": round(second, 1),
                "events": self.events,
                "busy_seconds": round(self.seconds, 3),
                "events_per_second": round(self.events / self.seconds) if self.seconds else 0,
                "backlog": published - self.delivered,
                "dead_rows": int(row.dead_rows),
                "table_kb": round(row.table_bytes / 1000),
                "index_kb": round(row.index_bytes / 1000),
            }
        )
        self.events, self.seconds = 0, 0.0


class Producer:
    """Publishes the same events into both outboxes at a constant rate until stopped, ten times a second."""

    def __init__(self, stores: Stores, rate: int) -> None:
        """Prepare the thread."""
        self.published = 0
        self._stores = stores
        self._step = max(1, rate // 10)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="producer")

    def __enter__(self) -> "Producer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Publish no more."""
        self._stopped.set()
        self._thread.join()

    def _produce(self) -> None:
        started = time.monotonic()
        for step in range(1, 10**9):
            if self._stopped.wait(max(0.0, started + step / 10 - time.monotonic())):
                return
            numbers = {"first": self.published + 1, "last": self.published + self._step}
            for statement in _PUBLISH.values():
                with self._stores.engine.begin() as connection:
                    connection.execute(statement, numbers)
            self.published += self._step


def drain_ours(stores: Stores) -> int:
    """Cut, extract, validate, load, prove and mark what is pending."""
    delivered = 0
    while True:
        done = relay(stores)
        assert not done.failures, done.failures
        delivered += done.delivered_count
        if done.delivered_count < _FULL:
            return delivered


def drain_status_column(stores: Stores, most: int) -> int:
    """Claim what is pending, insert it and update each row, *most* events in a transaction."""
    delivered = 0
    with dbapi.connect(conninfo_of(stores.engine)) as connection, connection.cursor() as cursor:
        while True:
            cursor.execute(_CLAIM.format(most=most))
            events = _typed(cursor.fetch_arrow_table())
            if events.num_rows:
                _insert(stores, events)
                positions = ",".join(map(str, events["position"].to_pylist()))
                cursor.execute(_MARK, (f"{{{positions}}}",))
            connection.commit()
            delivered += events.num_rows
            if events.num_rows < most:
                return delivered


def _typed(table: pa.Table) -> pa.Table:
    # PostgreSQL's json arrives as Arrow's JSON extension type over strings.
    contexts = pa.chunked_array([chunk.storage for chunk in table["event_context"].chunks], pa.string())
    at = table.schema.get_field_index("event_context")
    return (
        table.set_column(at, "event_context", contexts).select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA).combine_chunks()
    )


def _insert(stores: Stores, events: pa.Table) -> None:
    body = as_arrow(events, generation=0)
    named = {"batch_id": str(UUID(int=0)), "generation": 0}
    stores.client.run(_INSERT, named, body=body.pieces)


@contextmanager
def held_open(stores: Stores, *, publishing: bool) -> Iterator[None]:
    """Keep one transaction open during the block."""
    level = "READ COMMITTED" if publishing else "REPEATABLE READ"
    with stores.engine.connect().execution_options(isolation_level=level) as connection:
        connection.execute(text("SELECT count(*) FROM outbox.batch"))
        if publishing:
            for statement in _PUBLISH.values():
                connection.execute(statement, {"first": 0, "last": 0})
        yield
        connection.rollback()


def time_reads(stores: Stores) -> float:
    """Return the milliseconds that the ledger's own look at `unclaimed` takes, the best of five."""
    taken = []
    with ledger_transaction(stores.engine) as connection:
        for _ in range(5):
            started = time.perf_counter()
            read_conditions(connection)
            taken.append(time.perf_counter() - started)
    return round(min(taken) * 1000, 2)


def run(stores: Stores, contenders: list[Contender], given: argparse.Namespace) -> dict[str, float]:
    """Deliver under the open transaction, keeping samples; return how long the ledger's look at `unclaimed` took."""
    reads = [time_reads(stores)]
    with held_open(stores, publishing=given.publishing), Producer(stores, given.rate) as producer:
        started, next_sample = time.monotonic(), given.sample
        for turn in range(1, round(given.minutes * 60 / given.every) + 1):
            time.sleep(max(0.0, started + turn * given.every - time.monotonic()))
            for contender in contenders if turn % 2 else reversed(contenders):
                contender.work()
            if turn * given.every >= next_sample:
                next_sample += given.sample
                take_samples(stores, contenders, second=time.monotonic() - started, published=producer.published)
                reads.append(time_reads(stores))
        producer.stop()
        for contender in contenders:
            contender.work()
            missing = producer.published - contender.delivered
            assert missing == 0, f"{missing} of {producer.published} events were not delivered"
    return {"before": reads[0], "first": reads[1], "last": reads[-1]}


def take_samples(stores: Stores, contenders: list[Contender], *, second: float, published: int) -> None:
    """Keep one sample of each contender."""
    with stores.engine.connect() as connection:
        for contender in contenders:
            contender.sample(connection, second=second, published=published)


def figures_of(contender: Contender, *, drains_a_minute: int) -> dict[str, Any]:
    """Return the first and the last minute, their ratio and every sample."""
    # The last drain comes after the producer has stopped, so it is a small one.
    rates = contender.rates[:-1]
    first, last = median(rates[:drains_a_minute]), median(rates[-drains_a_minute:])
    return {
        "delivered": contender.delivered,
        "first_minute": round(first),
        "last_minute": round(last),
        "ratio": round(last / first, 3),
        "samples": contender.samples,
    }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Prepare both outboxes, warm both up, and run."""
    with fresh_stores() as stores:
        with stores.engine.begin() as connection:
            connection.execute(text(_STATUS_TABLE))
            connection.execute(text(_STATUS_INDEX))
        stores.client.run(f"CREATE TABLE status_log AS {stores.client.table}")
        contenders = {
            "ours": Contender(lambda: drain_ours(stores), [*_LEDGER, "outbox.event"]),
            "status_column": Contender(lambda: drain_status_column(stores, given.claim), ["public.status_outbox"]),
        }
        publish(stores.engine, _WARM_UP)
        with stores.engine.begin() as connection:
            connection.execute(_PUBLISH["status_outbox"], {"first": 1, "last": _WARM_UP})
        for contender in contenders.values():
            assert contender.drain() == _WARM_UP
        vacuum(stores.engine)
        reads = run(stores, list(contenders.values()), given)
        drains = max(1, round(60 / given.every))
        kept = {name: figures_of(one, drains_a_minute=drains) for name, one in contenders.items()}
    held_by = "a transaction that has published" if given.publishing else "a REPEATABLE READ reader"
    settings = {"minutes": given.minutes, "rate": given.rate, "every_seconds": given.every, "claim": given.claim}
    return {**settings, "held_by": held_by, **kept, "read_unclaimed_ms": reads}


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=int, default=2_000, help="events a second, into each outbox")
    parser.add_argument("--every", type=float, default=5, help="seconds between drains")
    parser.add_argument("--sample", type=float, default=10, help="seconds between figures")
    parser.add_argument("--claim", type=int, default=10_000, help="events a claim of the status-column outbox")
    parser.add_argument("--publishing", action="store_true", help="the open transaction has published an event")
    given = parser.parse_args()
    save("held_xmin_publishing" if given.publishing else "held_xmin", measure(given))


if __name__ == "__main__":
    main()
