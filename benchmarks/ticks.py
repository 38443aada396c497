"""What a look of the scheduler costs in every state the ledger can be in, on the embedded PostgreSQL.

    python -m benchmarks.ticks --events 10000000

Each state is built on a large table of processed events and measured: a tick that cuts nothing (the median), a cut of
200,000 events where there are any, reading a batch, marking, `outbox status` and the metrics. `tick_ms` is what a
sensor spends in PostgreSQL when there is nothing to do; ClickHouse is not asked here.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from statistics import median
from typing import Any

from sqlalchemy import Connection, Engine, text

from benchmarks.common import fresh_stores, publish, save, vacuum
from outbox_pipeline.monitoring.metrics import QUANTILES
from outbox_pipeline.monitoring.status import PENDING_LIMIT, read_status
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.overview import read_metrics
from outbox_pipeline.relay.attempts import start_unrequested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.tick import plan_tick
from outbox_pipeline.stores import Stores

_EVER = (date.min, date.max)
_REPEATS = 7

_BURN = text(
    "INSERT INTO outbox.event (event_type, environment, event_context)"
    " SELECT 't', 'benchmark', '{}' FROM generate_series(1, :count)"
)
#: A cut that passed over every second of *count* positions, as a row for each *stretches* of them.
_GAPS = text(
    "INSERT INTO outbox.gap (positions, holders)"
    " SELECT range_agg(int8range(n, n + 1)), CAST(:holders AS text[])"
    " FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint), 2) AS n"
    " GROUP BY (n - :first) / (2 * :stretches)"
)
_HOLE = text("UPDATE outbox.unclaimed SET positions = positions - int8multirange(int8range(:first, :last + 1))")
_FRAGMENT = text(
    "UPDATE outbox.unclaimed SET positions = positions - int8multirange(int8range(:first, :last + 1))"
    " + (SELECT range_agg(int8range(n, n + 1)) FROM generate_series(CAST(:first AS bigint), :last, 2) AS n)"
)
_BATCH = (
    "INSERT INTO outbox.batch (batch_id, positions, first_position, last_position, recorded_on, event_count,"
    " context_bytes, oldest_recorded_at, status, attempt, rejected, proof, accepted_count, rejected_count,"
    " processed_at, proved_at)"
    " SELECT gen_random_uuid(), int8multirange(int8range(n, n + :size)), n, n + :size - 1,"
    "  (now() AT TIME ZONE 'UTC')::date, :size, :size * 300, now(), 'processed', 1, '{}',"
    "  jsonb_build_object('row_count', 1), :size, 0, now() - interval '2 days', now()"
    " FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint), :size) AS n"
)


def main() -> None:
    """Build every state, one after the other, and measure it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000, help="processed events in the table")
    parser.add_argument("--fragments", type=int, default=150_000, help="stretches of a fragmented unclaimed set")
    parser.add_argument("--gaps", type=int, default=400_000, help="positions that open transactions hold")
    parser.add_argument("--batches", type=int, default=100_000, help="processed batches in the ledger")
    parser.add_argument("--cut", type=int, default=200_000, help="events of the large cut")
    given = parser.parse_args()
    with fresh_stores(batch_max_bytes=1_000_000_000) as stores:
        save("ticks", Bench(stores, given).measure())


class Bench:
    """The states in the order in which one follows from another."""

    def __init__(self, stores: Stores, given: argparse.Namespace) -> None:
        """Measure on these stores, in these sizes."""
        self.stores = stores
        self.engine: Engine = stores.engine
        self.given = given
        self.figures: dict[str, Any] = {}

    def measure(self) -> dict[str, Any]:
        """Return the figures of all states."""
        self.note("empty")
        self.process(self.given.events)
        self.note(f"{self.given.events} processed events")
        self.fill_ledger(10_000)
        self.note("10000 batches")
        self.fill_ledger(self.given.batches)
        self.note(f"{self.given.batches} batches")
        self.whole_batch()
        self.fragmented(visible=True)
        self.fragmented(visible=False)
        for stretches in (self.given.gaps, 500, 1):
            self.held(stretches)
        self.held_snapshot()
        return self.figures

    def note(self, state: str, **more: Any) -> None:
        """Measure what is asked all the time and keep it under the state's name."""
        self.figures[state] = {
            "tick_ms": self.timed(self.tick),
            "status_ms": self.timed(lambda: read_status(self.engine)),
            "metrics_ms": self.timed(self.metrics),
            **more,
        }
        print(state, self.figures[state], flush=True)

    def tick(self) -> None:
        """One look of the scheduler."""
        found = plan_tick(self.engine, self.stores.settings, days=_EVER)
        assert not found.cut.batches, found

    def metrics(self) -> None:
        """One scrape."""
        with ledger_transaction(self.engine) as connection:
            read_metrics(connection, limit=PENDING_LIMIT, quantiles=QUANTILES)

    def timed(self, act: Callable[[], object], repeats: int = _REPEATS) -> float:
        """Return the median of the milliseconds it takes."""
        return round(median(milliseconds(act) for _ in range(repeats)), 1)

    def process(self, count: int) -> None:
        """Publish events and put them into processed batches by hand: only the ledger matters here."""
        publish(self.engine, count)
        self.sql(_BATCH, first=1, last=count, size=min(200_000, count))
        self.sql("UPDATE outbox.unclaimed SET positions = int8multirange(int8range(:next, NULL))", next=count + 1)
        vacuum(self.engine)

    def fill_ledger(self, count: int) -> None:
        """Have *count* processed batches, of positions far below all events."""
        there = self.value("SELECT count(*) FROM outbox.batch")
        self.sql(_BATCH, first=-there - count, last=-there - 1, size=1)
        self.sql("ANALYZE outbox.batch")

    def whole_batch(self) -> None:
        """Cut one large batch, read and mark it."""
        publish(self.engine, self.given.cut)
        vacuum(self.engine)
        self.note_cut("a batch of events in a row")

    def fragmented(self, *, visible: bool) -> None:
        """Have every second position unclaimed, all of them events, or all rolled back."""
        span = 2 * self.given.fragments
        if visible:
            first = self.publish_span(span)
            self.sql(_BATCH, first=first + 1, last=first + 1, size=1)
            self.sql(
                "UPDATE outbox.batch SET positions = (SELECT range_agg(int8range(n, n + 1))"
                " FROM generate_series(CAST(:first AS bigint) + 1, :last, 2) AS n) WHERE first_position = :first + 1",
                first=first,
                last=first + span - 1,
            )
        else:
            first = self.burn(span)
        self.sql(_FRAGMENT, first=first, last=first + span - 1)
        if visible:
            self.note_cut(f"{self.given.fragments} fragments, all visible", limit=100)
        else:
            state = f"{self.given.fragments} fragments, none visible"
            self.figures[f"{state}, the first ticks"] = {
                "tick_ms": [round(milliseconds(self.tick), 1) for _ in range(12)]
            }
            print(self.figures[f"{state}, the first ticks"], flush=True)
            self.note(state)
            self.drain()

    def held(self, stretches: int) -> None:
        """Have gaps in rows of so many stretches, held by one transaction that has published and then ends."""
        span = 2 * self.given.gaps
        name = f"{self.given.gaps} gaps in rows of {stretches}"
        first = self.burn(span)
        with self.open_publisher() as (publisher, holder):
            self.sql(_HOLE, first=first, last=first + span - 1)
            self.sql(_GAPS, first=first, last=first + span - 1, stretches=stretches, holders=[holder])
            self.sql("ANALYZE outbox.gap")
            self.note(f"{name}, held")
            written = self.wal(lambda: [self.cut_one() for _ in range(10)])
            self.figures[f"{name}, held"]["wal_kb_per_cut"] = written
            print(written, flush=True)
            publisher.rollback()
        ticks = [round(milliseconds(self.tick), 1) for _ in range(12)]
        self.figures[f"{name}, holder gone"] = {"tick_ms": ticks}
        print(name, ticks, flush=True)
        self.note(f"{name}, being settled")
        self.drain()

    def held_snapshot(self) -> None:
        """Have a transaction that holds back the vacuum while a thousand batches are cut and marked."""
        with self.engine.connect().execution_options(isolation_level="REPEATABLE READ") as reader:
            reader.execute(text("SELECT count(*) FROM outbox.unclaimed"))
            for _ in range(1_000):
                self.cut_one()
            self.note("1000 cuts under a held snapshot")

    def cut_one(self) -> None:
        """Publish an event, cut and mark it."""
        self.sql(str(_BURN), count=1)
        cut_batches(self.engine, self.stores.settings, limit=1)
        self.process_open()

    def process_open(self) -> None:
        """Mark what is open, by hand."""
        self.sql(
            "UPDATE outbox.batch SET status = 'processed', processed_at = now(), proved_at = now(),"
            " accepted_count = event_count, rejected = '{}', proof = '{}' WHERE status <> 'processed'"
        )

    def note_cut(self, state: str, *, limit: int = 1) -> None:
        """Cut what is there, deliver the first batch step by step, and keep the times."""
        cuts: list[float] = []
        counts: list[int] = []
        for _ in range(limit):
            started = time.perf_counter()
            found = cut_batches(self.engine, self.stores.settings, limit=1)
            cuts.append(round((time.perf_counter() - started) * 1e3, 1))
            counts.append(found.event_count)
            if not found.batches:
                break
            batch_id = found.batches[0].batch_id
            if len(cuts) == 1:
                steps = self.deliver(batch_id)
            self.process_open()
        self.note(state, cut_ms=cuts, cut_events=counts, **steps)

    def deliver(self, batch_id: Any) -> dict[str, float]:
        """Deliver a batch; return the milliseconds of reading and of marking it."""
        delivery = start_unrequested(self.stores, batch_id)
        took = {
            f"{name}_ms": round(milliseconds(getattr(delivery, name)), 1)
            for name in ("extract", "validate", "load", "mark")
        }
        delivery.close()
        return {name: took[name] for name in ("extract_ms", "mark_ms")}

    def drain(self) -> None:
        """Settle everything, so that the next state begins with one stretch."""
        cut_batches(self.engine, self.stores.settings, limit=1_000)
        self.process_open()
        self.sql("DELETE FROM outbox.gap")
        next_position = self.last_drawn() + 1
        self.sql("UPDATE outbox.unclaimed SET positions = int8multirange(int8range(:n, NULL))", n=next_position)
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM outbox.gap, outbox.unclaimed, outbox.batch"))

    def publish_span(self, count: int) -> int:
        """Publish events in a row; return the first position."""
        first = self.last_drawn() + 1
        publish(self.engine, count, first=first)
        vacuum(self.engine)
        return first

    def burn(self, count: int) -> int:
        """Draw positions and roll back; return the first."""
        first = self.last_drawn() + 1
        self.sql("SELECT setval('outbox.event_position_seq', :last)", last=first + count - 1)
        return first

    @contextmanager
    def open_publisher(self) -> Iterator[tuple[Connection, str]]:
        """Have a transaction that has published; yields it and its name."""
        with self.engine.connect() as connection:
            connection.execute(_BURN, {"count": 1})
            name = connection.scalar(
                text("SELECT virtualtransaction FROM pg_locks WHERE pid = pg_backend_pid() LIMIT 1")
            )
            yield connection, str(name)
            with suppress(Exception):
                connection.rollback()

    def wal(self, act: Callable[[], object]) -> float:
        """Return the kilobytes of WAL a tenth of it writes."""
        before = self.value("SELECT pg_current_wal_insert_lsn() - '0/0'")
        act()
        return round(float(self.value("SELECT pg_current_wal_insert_lsn() - '0/0'") - before) / 1e4, 1)

    def last_drawn(self) -> int:
        """Return the last position drawn."""
        return int(self.value("SELECT coalesce(pg_sequence_last_value('outbox.event_position_seq'), 0)"))

    def value(self, statement: str) -> Any:
        """Return one value."""
        with self.engine.begin() as connection:
            return connection.scalar(text(statement))

    def sql(self, statement: Any, **parameters: Any) -> None:
        """Execute and commit."""
        with self.engine.begin() as connection:
            connection.execute(text(statement) if isinstance(statement, str) else statement, parameters)


def milliseconds(act: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    main()
