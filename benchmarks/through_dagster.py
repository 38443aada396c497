"""How fast a backlog goes through Dagster: sensor, queue and runs, compared with the relay.

    python -m benchmarks.through_dagster [--backlogs 1000000 5000000] [--relay-events 1000000]

Each backlog is published, then the stack that `outbox up` starts delivers it. The relay delivers its events before,
between and after the backlogs, in this process, so that a machine that changes its speed changes both.

`events_per_second` counts from the start of the first tick that asked for runs to the last batch processed;
`ratio_to_relay` divides it by the mean of the relay's rounds before and after. `seconds` are medians of a batch's
parts: `cut_to_request` (the rest of the tick), `request_to_queue` (Dagster makes the run), `queue_wait`,
`process_start` (taken from the queue until the first op starts), `work` (the four ops, split in `op_seconds`) and `end`
(last op until the run has ended). `process_start_share` is start and end over start, work and end, over all runs. A
run's memory is sampled five times a second and includes the pages it shares with the process it was forked from;
`timeline` says when each batch got where, in seconds since that first tick.
"""

import argparse
import time
from dataclasses import asdict
from statistics import mean
from typing import Any

from benchmarks.common import fresh_stores, last_position, publish, save, vacuum, wait_for_merges
from benchmarks.stack import (
    BatchTimes,
    Peaks,
    read_batches,
    read_ticks,
    run_figures,
    running_dagster,
    tick_figures,
    wait_processed,
    watching_memory,
)
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.memory import keep_freed_memory
from outbox_pipeline.stores import Stores

#: Slowest delivery that is still waited for, in events a second, and a stack's start.
_SLOWEST = 2_000
_START_SECONDS = 120


def main() -> None:
    """Run the measurement and keep its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--backlogs", type=int, nargs="+", default=[1_000_000, 5_000_000], help="events of each backlog"
    )
    parser.add_argument("--relay-events", type=int, default=1_000_000, help="events of each round of the relay")
    parser.add_argument("--size", type=int, default=300, help="bytes of an event's context")
    given = parser.parse_args()
    keep_freed_memory()  # as `outbox relay` does
    with fresh_stores() as stores:
        save("through_dagster", measure(stores, given.backlogs, relay_events=given.relay_events, size=given.size))


def measure(stores: Stores, backlogs: list[int], *, relay_events: int, size: int) -> dict[str, Any]:
    """Alternate relay and stack, one round of the relay more than there are backlogs."""
    before = relay_speed(stores, relay_events, size=size)
    found: list[dict[str, Any]] = []
    for count in backlogs:
        shown = through_dagster(stores, count, size=size)
        after = relay_speed(stores, relay_events, size=size)
        beside = mean([before, after])
        ratio = round(shown["events_per_second"] / beside, 3)
        found.append({"events": count, "ratio_to_relay": ratio, "relay_events_per_second": round(beside)} | shown)
        before = after
    return {"context_bytes": size, "relay_events_per_round": relay_events, "backlogs": found}


def relay_speed(stores: Stores, count: int, *, size: int) -> float:
    """Publish *count* events, deliver them with the relay, and return events a second."""
    backlog(stores, count, size=size)
    started = time.monotonic()
    done = relay(stores, until_empty=True)
    assert done.delivered_count == count, done
    return count / (time.monotonic() - started)


def backlog(stores: Stores, count: int, *, size: int) -> int:
    """Publish *count* events, let both stores come to rest, and return the last position before them."""
    after = last_position(stores.engine)
    publish(stores.engine, count, size=size, first=after + 1)
    vacuum(stores.engine)
    wait_for_merges(stores)
    return after


def through_dagster(stores: Stores, count: int, *, size: int) -> dict[str, Any]:
    """Publish *count* events, deliver them through the stack, and return what was seen."""
    after = backlog(stores, count, size=size)
    started = time.time()
    with running_dagster(stores) as stack, watching_memory(stack) as peaks:
        wait_processed(stores.engine, count, after=after, seconds=_START_SECONDS + count / _SLOWEST)
        batches = read_batches(stores, after=after)
        ticks = read_ticks(stores, since=started)
    return figures(count, batches, ticks, peaks)


def figures(
    count: int, batches: list[BatchTimes], ticks: list[tuple[float, float, int]], peaks: Peaks
) -> dict[str, Any]:
    """Turn what was seen into figures."""
    began = next(start for start, _, runs in ticks if runs)
    seconds = max(batch.processed for batch in batches) - began
    return {
        "events_per_second": round(count / seconds),
        "seconds_until_first_op": round(min(batch.first_op for batch in batches) - began, 2),
        "seconds_until_drained": round(seconds, 2),
        "runs": run_figures(batches),
        "ticks": tick_figures(ticks),
        "peaks": asdict(peaks),
        "timeline": timeline(batches, began),
    }


def timeline(batches: list[BatchTimes], began: float) -> list[dict[str, float]]:
    """Return when each batch got where, in seconds since the first tick that asked for runs."""
    moments = ("cut", "enqueued", "dequeued", "first_op", "processed", "run_ended")
    return [
        {"events": batch.events} | {name: round(getattr(batch, name) - began, 2) for name in moments}
        for batch in batches
    ]


if __name__ == "__main__":
    main()
