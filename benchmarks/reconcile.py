"""How long reconciling takes and how much memory ClickHouse needs for it, on embedded engines.

    python -m benchmarks.reconcile --events 10000000 --home /tmp/reconcile-bench

Publishes by SQL, delivers with the real relay, 200,000 events a batch, then compares both sides: as it is, by type, and
with one batch broken, and repairs that. The home is kept, so a second call with the same one only compares.
"""

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr
from sqlalchemy import Engine, text

from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.logs import configure_logs
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.repair import repair
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.postgres.schema import migrate
from outbox_pipeline.relay.loop import RelayResult, relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores

_BATCH_EVENTS = 200_000

# A context of about 250 bytes that differs from event to event, of eight types.
_PUBLISH = text(
    "INSERT INTO outbox.event (event_type, environment, event_context)"
    " SELECT 'type_' || n % 8, 'benchmark', json_build_object("
    "     'order', n, 'customer', md5(n::text), 'note', repeat(md5((n * 7)::text), 4), 'amount', n % 1000)"
    " FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n"
)


class Memory:
    """The highest resident memory of ClickHouse's process while a block runs, above what it had before."""

    def __init__(self, process: psutil.Process) -> None:
        """Watch this process."""
        self._process = process
        self._stopped = threading.Event()
        self.before = self.peak = process.memory_info().rss

    def __enter__(self) -> "Memory":
        """Begin to look fifty times a second."""
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stopped.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss)

    @property
    def grown(self) -> float:
        """By how many megabytes it grew."""
        return (self.peak - self.before) / 1e6


def main() -> None:
    """Fill, deliver, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--home", type=Path, required=True)
    arguments = parser.parse_args()
    with _stores(arguments.home) as stores:
        _fill(stores, arguments.events)
        process = _clickhouse_process(arguments.home)
        _measure("compare", process, lambda: reconcile(stores))
        _measure("compare again", process, lambda: reconcile(stores))
        _measure("compare by type", process, lambda: reconcile(stores, by_type=True))
        stores.client.run(
            "DELETE FROM {table:Identifier} WHERE position BETWEEN 1000 AND 1999",
            settings={"lightweight_deletes_sync": 2},
        )
        found = _measure("compare with a broken batch", process, lambda: reconcile(stores))
        _measure("repair it", process, lambda: repair(stores, found))


@contextmanager
def _stores(home: Path) -> Iterator[Stores]:
    with embedded_engines(home) as urls:
        assert urls.postgres
        assert urls.clickhouse
        settings = Settings(
            postgres_url=SecretStr(urls.postgres),
            clickhouse_url=SecretStr(urls.clickhouse),
            batch_max_events=_BATCH_EVENTS,
            batch_max_bytes=1_000_000_000,
            log_level="WARNING",
        )
        configure_logs(settings)
        engine = create_outbox_engine(settings)
        migrate(engine)
        client = open_client(settings)
        create_table(client)
        yield Stores(engine, client, settings)
        client.close()
        engine.dispose()


def _fill(stores: Stores, events: int) -> None:
    there = _count(stores.engine)
    started = time.monotonic()
    for first in range(there + 1, events + 1, _BATCH_EVENTS):
        with stores.engine.begin() as connection:
            connection.execute(_PUBLISH, {"first": first, "last": min(first + _BATCH_EVENTS - 1, events)})
    print(f"published {events - there:,} events in {time.monotonic() - started:.1f} s", flush=True)
    with stores.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE outbox.event"))
    started = time.monotonic()
    result: RelayResult = relay(stores, until_empty=True)
    seconds = time.monotonic() - started
    print(f"delivered {result.delivered_count:,} events, {result.batch_count} batches in {seconds:.1f} s", flush=True)


def _count(engine: Engine) -> int:
    with engine.begin() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM outbox.event")) or 0)


def _clickhouse_process(home: Path) -> psutil.Process:
    wanted = str(home.resolve())
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any("clickhouse_server" in word for word in words) and any(wanted in word for word in words):
            return process
    raise SystemExit(f"no ClickHouse server runs on {home}")


def _measure(what: str, process: psutil.Process, act: Callable[[], Any]) -> Any:
    started = time.monotonic()
    with Memory(process) as memory:
        result = act()
    seconds = time.monotonic() - started
    print(f"{what}: {seconds:.1f} s, ClickHouse +{memory.grown:.0f} MB ({_told(result)})", flush=True)
    return result


def _told(result: Any) -> str:
    if hasattr(result, "days"):
        rows = sum(day.found_rows for day in result.days)
        return f"{rows:,} rows, {sum(day.batches for day in result.days)} batches, {len(result.differences)} differ"
    return f"{len(result.redelivered)} batches delivered again, {len(result.left)} left"


if __name__ == "__main__":
    main()
