"""How long an event takes from its commit until ClickHouse shows it, through the stack that `outbox up` starts.

    python -m benchmarks.latency [--rates 10 100 1000 5000] [--seconds 120]

At each rate a publisher in a process of its own commits events of 300 bytes with `publish_events`, up to 100
transactions a second at an even pace, on the same machine as everything else. `achieved_events_per_second` is what it
really committed.

An event is visible when a reader that asks ClickHouse four times a second has seen it
(`outbox_pipeline.demo.arrivals`), so a latency is too long by up to a quarter of a second and never too short;
`loaded_at` would flatter, because ClickHouse sets it when an insert starts. The clock starts just before the commit.
Per event the latency is split at the cut of its batch and at the moment a run took the batch's lease: `tick_wait`,
`process_start` and `work`. Percentiles of parts do not add up to the percentile of the whole; means do. `runs` says
where the seconds of the runs went.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks.common import contexts, fresh_stores, last_position, percentiles, save
from benchmarks.stack import (
    BatchTimes,
    read_batches,
    read_ticks,
    run_figures,
    running_dagster,
    tick_figures,
    wait_processed,
)
from outbox_pipeline import publish_events
from outbox_pipeline.demo.arrivals import watching_arrivals
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.processes import wait_until
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores

_SIZE = 300
_TRANSACTIONS_PER_SECOND = 100
#: How long after the last commit the rest may take to arrive.
_DRAIN_SECONDS = 120

_BATCHES = "SELECT event_id, batch_id FROM {table:Identifier} WHERE position > {after:UInt64}"


def main() -> None:
    """Run the measurement and keep its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=[10, 100, 1_000, 5_000], help="events a second")
    parser.add_argument("--seconds", type=int, default=120, help="how long each rate is kept up")
    parser.add_argument("--publish", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.publish is not None:
        be_the_publisher(given.rates[0], given.seconds, given.publish)
        return
    with fresh_stores() as stores, running_dagster(stores):
        warm_up(stores)
        rates = [{"rate": rate} | measure(stores, rate, given.seconds) for rate in given.rates]
        save("latency", {"context_bytes": _SIZE, "seconds_per_rate": given.seconds, "rates": rates})


def warm_up(stores: Stores) -> None:
    """Wait until the first event has come through: what is measured afterwards is delivery and not Dagster's start."""
    after = last_position(stores.engine)
    with Session(stores.engine) as session, session.begin():
        publish_events(session, [{"number": 0}], event_type="warm_up")
    wait_processed(stores.engine, 1, after=after, seconds=_DRAIN_SECONDS)


def measure(stores: Stores, rate: int, seconds: int) -> dict[str, Any]:
    """Publish at *rate* for *seconds* and return what became of the events."""
    after, began = last_position(stores.engine), time.time()
    journal = stores.settings.home / f"published-{rate}.jsonl"
    with watching_arrivals(stores.settings, after=after) as arrivals:
        command = [sys.executable, "-m", "benchmarks.latency", "--publish", str(journal)]
        subprocess.run([*command, "--rates", str(rate), "--seconds", str(seconds)], check=True)
        committed = read_journal(journal)
        wait_processed(stores.engine, len(committed), after=after, seconds=_DRAIN_SECONDS)
        wait_until(lambda: len(arrivals.seen) >= len(committed), seconds=10, pause=0.1)
    assert arrivals.seen.keys() == committed.keys(), (len(arrivals.seen), len(committed))
    batches = read_batches(stores, after=after)
    achieved = (len(committed) - 1) / (max(committed.values()) - min(committed.values()))
    return {
        "events": len(committed),
        "achieved_events_per_second": round(achieved, 1),
        "latency_seconds": shares([arrivals.seen[event_id] - at for event_id, at in committed.items()]),
        "parts_seconds": split(committed, arrivals.seen, batch_of_events(stores, after), batches),
        "runs": run_figures(batches),
        "ticks": tick_figures(read_ticks(stores, since=began)),
    }


def split(
    committed: dict[UUID, float], seen: dict[UUID, float], batch_of: dict[UUID, UUID], batches: list[BatchTimes]
) -> dict[str, dict[str, float]]:
    """Split each event's latency at the cut of its batch and at its lease."""
    times = {batch.batch_id: batch for batch in batches}
    found = [(at, times[batch_of[event_id]], seen[event_id]) for event_id, at in committed.items()]
    return {
        "tick_wait": shares([batch.cut - at for at, batch, _ in found]),
        "process_start": shares([batch.leased - batch.cut for _, batch, _ in found]),
        "work": shares([visible - batch.leased for _, batch, visible in found]),
    }


def shares(seconds: list[float]) -> dict[str, float]:
    """Return percentiles, the maximum and the mean."""
    return {**percentiles(seconds), "mean": round(mean(seconds), 3)}


def batch_of_events(stores: Stores, after: int) -> dict[UUID, UUID]:
    """Return the batch each event came in, as ClickHouse has it."""
    return {row["event_id"]: row["batch_id"] for row in stores.client.rows(_BATCHES, {"after": after})}


def be_the_publisher(rate: int, seconds: int, journal: Path) -> None:
    """Commit *rate* events a second, and note for each transaction when it was committed and what it published."""
    transactions = min(rate, _TRANSACTIONS_PER_SECOND)
    each = rate // transactions
    bodies = [json.loads(body) for body in contexts(_SIZE)]
    engine = create_outbox_engine(Settings())
    with engine.connect() as connection, journal.open("w") as written:
        connection.execute(text("SELECT 1"))
        connection.rollback()
        started = time.monotonic()
        for nth in range(transactions * seconds):
            time.sleep(max(0.0, started + nth / transactions - time.monotonic()))
            first = nth * each
            events = [{**bodies[number % len(bodies)], "number": number} for number in range(first, first + each)]
            ids = publish_events(connection, events, event_type="latency")
            at = time.time()
            connection.commit()
            written.write(json.dumps([at, *map(str, ids)]) + os.linesep)


def read_journal(journal: Path) -> dict[UUID, float]:
    """Return the commit time of each event that was published."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return {UUID(event_id): at for at, *event_ids in lines for event_id in event_ids}


if __name__ == "__main__":
    main()
