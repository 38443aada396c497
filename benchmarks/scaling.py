"""Several relays at once on one outbox: how fast they are together, and that they take different batches.

    python -m benchmarks.scaling [--events N] [--batch N] [--relays N …]

For each number of relays the backlog is published first; then that many `outbox relay --until-empty` start together,
each a process of its own. Batches are of `--batch` events, so that there are several for each.

`events_per_second` is events through the seconds between the first cut and the last mark in the ledger, so it leaves
out the processes' start, which `wall_seconds` includes. `delivered_by` says how many events each relay took. Afterwards
the ledger's batches must not overlap and must add up to the backlog, and ClickHouse must show each event once.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from sqlalchemy import text

from benchmarks.common import count_delivered, fresh_stores, last_position, publish, save, vacuum, wait_for_merges
from outbox_pipeline.stores import Stores

_RELAY = [sys.executable, "-m", "outbox_pipeline.cli.main", "relay", "--until-empty", "--json"]

_LEDGER = text(
    "SELECT count(*) AS batches, sum(event_count) AS events, range_agg(positions) AS together,"
    " sum((SELECT sum(upper(stretch) - lower(stretch)) FROM unnest(positions) AS stretch)) AS positions,"
    " extract(epoch FROM max(processed_at) - min(cut_at)) AS seconds"
    " FROM outbox.batch WHERE first_position > :after AND status = 'processed'"
)
_DISTINCT = text(
    "SELECT sum(upper(stretch) - lower(stretch)) FROM unnest(CAST(:together AS int8multirange)) AS stretch"
)


def measure(stores: Stores, *, relays: int, events: int) -> dict[str, Any]:
    """Deliver a backlog with this many relays."""
    after = last_position(stores.engine)
    publish(stores.engine, events, first=after + 1)
    vacuum(stores.engine)
    wait_for_merges(stores)
    started = time.perf_counter()
    reports = _relay_together(relays)
    wall = time.perf_counter() - started
    delivered = sorted((report["delivered"] for report in reports), reverse=True)
    found = count_delivered(stores, after=after, until=last_position(stores.engine))
    if found != events or sum(delivered) != events:
        raise RuntimeError(f"{found} of {events} events are in ClickHouse, the relays delivered {delivered}.")
    ledger = _read_ledger(stores, after)
    if not ledger["events"] == ledger["positions"] == ledger["distinct_positions"] == events:
        raise RuntimeError(f"The batches overlap or do not add up to {events} events: {ledger}.")
    return {
        "relays": relays,
        "events": events,
        "events_per_second": round(events / ledger["seconds"]),
        "wall_seconds": round(wall, 2),
        "batches": ledger["batches"],
        "delivered_by": delivered,
    }


def _relay_together(relays: int) -> list[dict[str, Any]]:
    processes = [subprocess.Popen(_RELAY, stdout=subprocess.PIPE, text=True) for _ in range(relays)]
    answers = [process.communicate()[0] for process in processes]
    failed = [process.returncode for process in processes if process.returncode]
    if failed:
        raise RuntimeError(f"{len(failed)} of {relays} relays failed; what they said is above.")
    return [json.loads(answer) for answer in answers]


def _read_ledger(stores: Stores, after: int) -> dict[str, Any]:
    with stores.engine.begin() as connection:
        found = dict(connection.execute(_LEDGER, {"after": after}).one()._mapping)
        together = found.pop("together")
        return {**found, "distinct_positions": connection.scalar(_DISTINCT, {"together": together})}


def main() -> None:
    """Measure each number of relays on the same engines."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--events", type=int, default=1_000_000, help="events for each number of relays")
    parser.add_argument("--batch", type=int, default=50_000, help="most events in a batch")
    parser.add_argument("--relays", type=int, nargs="+", default=[1, 2, 4])
    given = parser.parse_args()
    with fresh_stores(batch_max_events=given.batch) as stores:
        rounds = [measure(stores, relays=relays, events=given.events) for relays in given.relays]
    alone = rounds[0]["events_per_second"]
    for a_round in rounds:
        a_round["times_the_first"] = round(a_round["events_per_second"] / alone, 2)
    save("scaling", {"batch_max_events": given.batch, "rounds": rounds})


if __name__ == "__main__":
    main()
