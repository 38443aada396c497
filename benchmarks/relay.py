"""How fast a relay delivers contexts of three sizes, stage by stage, validation and proof included.

    python -m benchmarks.relay [--contexts BYTES:EVENTS …]

Each size has a process and engines of its own. The backlog is published before the clock starts; the relay then
delivers it with its default settings until nothing is pending, and ClickHouse is asked whether every event is there
once. One million events of 30 KB would be 30 GB in PostgreSQL, hence fewer of them.

`events_per_second` is events through seconds on the clock. `stages` are seconds summed over batches (`load` is
encoding, sending and proving), `parts` what they consist of (`benchmarks.stages`). `stage_sum` above `wall_seconds`
shows how much of it ran at once. `cpu_seconds` through `wall_seconds` is how many cores each side kept busy.
`…_peak_mb` is the most resident memory of the relay's process, with interpreter and libraries (`relay_before_mb`), and
of the ClickHouse server.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from benchmarks.common import (
    PeakMemory,
    count_delivered,
    cpu_seconds,
    engine_pids,
    fresh_stores,
    publish,
    save,
    vacuum,
)
from benchmarks.stages import watched_stages
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.memory import keep_freed_memory
from outbox_pipeline.stores import Stores

_CONTEXTS = ["300:1000000", "3000:300000", "30000:50000"]


def measure(size: int, events: int) -> dict[str, Any]:
    """Deliver a backlog of *events* contexts of *size* bytes on engines of their own."""
    keep_freed_memory()  # as `outbox relay` does
    with fresh_stores() as stores:
        publish(stores.engine, events, size=size)
        vacuum(stores.engine)
        figures = _deliver(stores, events)
    megabytes = round(size * events / figures["wall_seconds"] / 1e6, 1)
    return {"context_bytes": size, "events": events, **figures, "megabytes_per_second": megabytes}


def _deliver(stores: Stores, events: int) -> dict[str, Any]:
    engines = engine_pids()
    ours, theirs = PeakMemory(os.getpid()), PeakMemory(engines["clickhouse"])
    before = _cpu_seconds(engines)
    with watched_stages() as stages:
        started = time.perf_counter()
        result = relay(stores, until_empty=True)
        wall = time.perf_counter() - started
    # Before the count, which takes memory and time of its own.
    used = {name: round(seconds - before[name], 2) for name, seconds in _cpu_seconds(engines).items()}
    memory = {
        "relay_before_mb": ours.before_mb,
        "relay_peak_mb": ours.peak_mb,
        "clickhouse_before_mb": theirs.before_mb,
        "clickhouse_peak_mb": theirs.peak_mb,
    }
    found = count_delivered(stores, after=0, until=events)
    if found != events or result.failures:
        raise RuntimeError(f"{found} of {events} events arrived: {result}.")
    return {
        "batches": result.batch_count,
        "wall_seconds": round(wall, 3),
        "events_per_second": round(events / wall),
        "stages": stages.seconds,
        "stage_sum": round(sum(stages.seconds.values()), 3),
        "ms_per_100000": {stage: round(took * 1e8 / events, 1) for stage, took in stages.seconds.items()},
        "parts": stages.parts,
        "cpu_seconds": used,
        **memory,
    }


def _cpu_seconds(engines: dict[str, int]) -> dict[str, float]:
    return {
        "relay": cpu_seconds(os.getpid()),
        "postgres": cpu_seconds(engines["postgres"], with_children=True),
        "clickhouse": cpu_seconds(engines["clickhouse"]),
    }


def main() -> None:
    """Measure each size in a new process, so that no size sees the memory of the one before."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--contexts", nargs="+", default=_CONTEXTS, metavar="BYTES:EVENTS", help=f"default: {' '.join(_CONTEXTS)}"
    )
    pairs = [tuple(map(int, pair.split(":"))) for pair in parser.parse_args().contexts]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        rounds = [pool.submit(measure, size, events).result() for size, events in pairs]
    save("relay", {"rounds": rounds})


if __name__ == "__main__":
    main()
