"""Measure whether a prune gives space back for reuse, and whether it slows delivery down.

Run from a checkout with `python -m benchmarks.retention`; it starts embedded engines in a folder of its own under
OUTBOX_HOME and prints a table for each question.

Space: each cycle stands for a day. It publishes, cuts, marks (by hand: only the ledger matters here), prunes the
batches of the oldest of three days and vacuums, as autovacuum would over a day, and shows the sizes.
Speed: rounds of a relay alone and of a relay beside a prune in another process, in turns, on the same engines.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from pydantic import SecretStr
from sqlalchemy import Engine, text

from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.logs import configure_logs
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.retention import prune_events
from outbox_pipeline.postgres.schema import migrate
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores, open_stores

_PUBLISH = text(
    "INSERT INTO outbox.event (event_type, environment, event_context)"
    " SELECT 'order_placed', 'bench', json_build_object('order', n, 'note', repeat(md5(n::text), 6))"
    " FROM generate_series(1, :count) AS n"
)
_MARK = text(
    "UPDATE outbox.batch SET status = 'processed', processed_at = now(), proved_at = now(),"
    " accepted_count = event_count, rejected = '{}', proof = '{}' WHERE status = 'cut' RETURNING batch_id"
)
_AGE = text(
    "UPDATE outbox.batch SET processed_at = processed_at - interval '20 days',"
    " oldest_recorded_at = oldest_recorded_at - interval '20 days' WHERE processed_at > now() - interval '10 days'"
)
_SIZES = text(
    "SELECT pg_relation_size('outbox.event') AS table, pg_relation_size('outbox.event_pkey') AS position,"
    " pg_relation_size('outbox.event_event_id_key') AS event_id, (SELECT count(*) FROM outbox.event) AS events"
)
_LEDGER = text(
    "INSERT INTO outbox.batch (batch_id, positions, first_position, last_position, recorded_on, event_count,"
    " context_bytes, oldest_recorded_at, status, attempt, run_id, rejected, proof, accepted_count, processed_at,"
    " proved_at, pruned_at)"
    " SELECT gen_random_uuid(), int8multirange(int8range(n, n + 1)), n, n, '2026-01-01', 1, 1, now(), 'processed', 1,"
    " run_id, rejected, proof, 1, now(), now(), now()"
    " FROM generate_series(1000000000, 1000000000 + :count) AS n, (SELECT * FROM outbox.batch LIMIT 1) AS model"
)
_LEDGER_SIZE = text("SELECT pg_total_relation_size('outbox.batch')")


def publish(engine: Engine, count: int) -> None:
    """Publish events of about 250 bytes in transactions of 50,000."""
    for start in range(0, count, 50_000):
        with engine.begin() as connection:
            connection.execute(_PUBLISH, {"count": min(50_000, count - start)})


def vacuum(engine: Engine) -> None:
    """Do what autovacuum does within a day."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) outbox.event"))


def measure_space(stores: Stores, *, events: int, cycles: int) -> None:
    """Print the sizes after each cycle; with three days kept they must stop growing after the fourth."""
    print(f"space: {events:,} events a cycle, three cycles kept")
    print(f"{'cycle':>5} {'events':>10} {'table MB':>9} {'position MB':>12} {'event_id MB':>12} {'prune s':>8}")
    days: list[list[object]] = []
    for cycle in range(1, cycles + 1):
        publish(stores.engine, events)
        while cut_batches(stores.engine, stores.settings, limit=8).batches:
            pass
        with stores.engine.begin() as connection:
            days.append(list(connection.execute(_MARK).scalars()))
        started = time.monotonic()
        for batch_id in days.pop(0) if len(days) > 3 else ():
            with ledger_transaction(stores.engine) as connection:
                prune_events(connection, batch_id)  # type: ignore[arg-type]
        seconds = time.monotonic() - started
        vacuum(stores.engine)
        with stores.engine.begin() as connection:
            row = connection.execute(_SIZES).one()
        sizes = [size / 1e6 for size in (row.table, row.position, row.event_id)]
        print(f"{cycle:>5} {row.events:>10,} {sizes[0]:>9.1f} {sizes[1]:>12.1f} {sizes[2]:>12.1f} {seconds:>8.2f}")


def measure_ledger(stores: Stores, *, batches: int) -> None:
    """Print what a pruned batch keeps in the ledger; a copy of a real row with real proof, run and indexes."""
    with stores.engine.begin() as connection:
        before = connection.scalar(_LEDGER_SIZE)
        connection.execute(text("UPDATE outbox.batch SET run_id = gen_random_uuid()::text"))
        connection.execute(_LEDGER, {"count": batches})
        after = connection.scalar(_LEDGER_SIZE)
    print(f"ledger: {(after - before) / batches:,.0f} bytes a batch, indexes included")  # type: ignore[operator]


def measure_speed(stores: Stores, *, to_prune: int, a_round: int, rounds: int) -> None:
    """Print the relay's events a second alone and beside a prune, in turns, and the ratio of the medians."""
    publish(stores.engine, to_prune)
    started = time.monotonic()
    relay(stores, until_empty=True)
    print(f"speed: {to_prune:,} events to prune, delivered before at {to_prune / (time.monotonic() - started):,.0f}/s")
    with stores.engine.begin() as connection:
        connection.execute(_AGE)
    vacuum(stores.engine)
    alone: list[float] = []
    beside: list[float] = []
    pruned: list[int] = []
    with pruner() as child:
        for _ in range(rounds):
            alone.append(timed_relay(stores, a_round))
            before = pruned_count(stores)
            beside.append(timed_relay(stores, a_round, child))
            pruned.append(pruned_count(stores) - before)
    ratio = statistics.median(beside) / statistics.median(alone)
    print("alone  events/s:", " ".join(f"{rate:,.0f}" for rate in alone))
    print("beside events/s:", " ".join(f"{rate:,.0f}" for rate in beside))
    print("pruned meanwhile:", " ".join(f"{count:,}" for count in pruned))
    print(f"medians: {statistics.median(alone):,.0f} and {statistics.median(beside):,.0f}, ratio {ratio:.2f}")


def timed_relay(stores: Stores, count: int, child: "Pruner | None" = None) -> float:
    """Publish, then relay until empty, beside the child if given; return events a second of the relay."""
    publish(stores.engine, count)
    if child is not None:
        child.go_on()
    started = time.monotonic()
    done = relay(stores, until_empty=True)
    seconds = time.monotonic() - started
    if child is not None:
        child.hold()
    assert done.delivered_count == count, done
    return count / seconds


class Pruner:
    """A prune in another process that works only while it is told to."""

    def __init__(self) -> None:
        """Start it and hold it."""
        command = [sys.executable, "-m", "benchmarks.retention", "--prune"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def go_on(self) -> None:
        """Let it prune."""
        flag().touch()

    def hold(self) -> None:
        """Let it stop after its batch."""
        flag().unlink()

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def pruned_count(stores: Stores) -> int:
    """Return how many events are pruned by now."""
    statement = "SELECT coalesce(sum(accepted_count), 0) FROM outbox.batch WHERE pruned_at IS NOT NULL"
    with stores.engine.begin() as connection:
        return int(connection.scalar(text(statement)) or 0)


def flag() -> Path:
    """Return the file that lets the pruner work while it exists."""
    return Path(os.environ["OUTBOX_HOME"]) / "prune-now"


@contextmanager
def pruner() -> Iterator[Pruner]:
    """Have a pruner during the block."""
    child = Pruner()
    try:
        yield child
    finally:
        child.end()


def be_the_pruner() -> None:
    """Prune batch after batch while the flag is there."""
    settings = Settings()
    configure_logs(settings)
    with open_stores(settings) as stores:
        prune(stores, dry_run=True, seconds=0)
        print("ready", flush=True)
        while True:
            while not flag().exists():
                time.sleep(0.01)
            done = prune(stores, on_progress=_hold)
            if done.batches == 0:
                return


def _hold(_: object) -> None:
    while not flag().exists():
        time.sleep(0.01)


def main() -> None:
    """Run both measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000, help="events a cycle of the space measurement")
    parser.add_argument("--cycles", type=int, default=8)
    parser.add_argument("--to-prune", type=int, default=1_000_000)
    parser.add_argument("--round", type=int, default=100_000, help="events a round of the speed measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=50_000, help="events a batch")
    parser.add_argument("--prune", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prune:
        be_the_pruner()
        return
    home = Path(mkdtemp(dir=os.environ.setdefault("OUTBOX_HOME", "/tmp")))
    with embedded_engines(home) as urls:
        assert urls.postgres
        assert urls.clickhouse
        os.environ |= {
            "OUTBOX_HOME": str(home),
            "OUTBOX_POSTGRES_URL": urls.postgres,
            "OUTBOX_CLICKHOUSE_URL": urls.clickhouse,
            "OUTBOX_LOG_LEVEL": "WARNING",
            "OUTBOX_BATCH_MAX_EVENTS": str(given.batch),
        }
        settings = Settings(postgres_url=SecretStr(urls.postgres), clickhouse_url=SecretStr(urls.clickhouse))
        configure_logs(settings)
        with open_stores(settings) as stores:
            migrate(stores.engine)
            create_table(stores.client)
            if given.rounds:
                measure_speed(stores, to_prune=given.to_prune, a_round=given.round, rounds=given.rounds)
                measure_ledger(stores, batches=100_000)
            if given.cycles:
                with stores.engine.begin() as connection:
                    connection.execute(text("UPDATE outbox.batch SET pruned_at = now() WHERE pruned_at IS NULL"))
                measure_space(stores, events=given.events, cycles=given.cycles)


if __name__ == "__main__":
    main()
