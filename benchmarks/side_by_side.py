"""The relay beside other ways to do the same, in turns on the same engines, as ratios.

    python -m benchmarks.side_by_side [--events N] [--loop-events N] [--rounds N]

A round publishes events of 300 bytes, then lets each contender deliver them, each round beginning with another one.
Before each PostgreSQL is vacuumed and checkpointed and ClickHouse's merges are over. After each round every destination
must hold each event of the round once, and rows in ClickHouse must equal those of our event log.

`events_per_second` is the median of the rounds, `ours_ratio` the median of the rounds' ratios: how many times faster
the relay was, its validation and proof included. `lacks` says what a contender does not do.
`…_extract_normalize` is a dlt run without its last step, the load into DuckDB.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.common import count_delivered, fresh_stores, last_position, publish, save, vacuum, wait_for_merges
from benchmarks.contenders import (
    NATIVE_GRANTS,
    copy_natively,
    create_tables,
    deliver_frames,
    deliver_loop,
    fill_status_table,
)
from benchmarks.with_dlt import BACKENDS, HOW_TO_INSTALL, is_installed, run_dlt
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.memory import keep_freed_memory
from outbox_pipeline.stores import Stores

_NO_PROOF = "validation, proof; a crash between INSERT and COMMIT delivers a portion twice"
_NATIVE_LACKS = "validation, proof, knowing what is pending; a crash in the middle leaves an unknown part"
_DLT_LACKS = "ClickHouse (it writes DuckDB), validation, proof, marking; a late commit below its cursor is lost"

_SUMS = """
SELECT count() AS rows, sum(cityHash64(position, event_id, event_type, event_date_time, environment, event_context,
    metadata_version, recorded_at)) AS hash
FROM {name:Identifier} WHERE position > {after:UInt64} AND position <= {until:UInt64}
"""


@dataclass(frozen=True)
class Published:
    """The positions that a contender is to deliver."""

    after: int
    until: int

    @property
    def count(self) -> int:
        """How many events these are."""
        return self.until - self.after

    def first(self, count: int) -> "Published":
        """Return the first *count* of them."""
        return Published(self.after, min(self.after + count, self.until))


@dataclass(frozen=True)
class Contender:
    """One way to deliver: what it lacks, and its status table in PostgreSQL and destination in ClickHouse if any.

    `deliver` returns seconds by name of the figure.
    """

    deliver: Callable[[Stores, Published], dict[str, float]]
    lacks: str
    source: str | None = None
    destination: str | None = None
    most_events: int | None = None


def contenders(loop_events: int) -> dict[str, Contender]:
    """Return who takes part, ours first."""
    found = {
        "ours": Contender(_timed("ours", _relay), "nothing of what the others lack"),
        "native": Contender(_timed("native", _copy_natively), _NATIVE_LACKS, destination="native_log"),
        "frames": Contender(_timed("frames", _deliver_frames), _NO_PROOF, "status_frames", "frames_log"),
        "loop": Contender(_timed("loop", _deliver_loop), _NO_PROOF, "status_loop", "loop_log", loop_events),
    }
    if is_installed():
        found |= {f"dlt_{backend}": Contender(partial(_run_dlt, backend), _DLT_LACKS) for backend in BACKENDS}
    return found


def _timed(name: str, deliver: Callable[[Stores, Published], None]) -> Callable[[Stores, Published], dict[str, float]]:
    def taken(stores: Stores, published: Published) -> dict[str, float]:
        started = perf_counter()
        deliver(stores, published)
        return {name: perf_counter() - started}

    return taken


def _relay(stores: Stores, published: Published) -> None:
    result = relay(stores, until_empty=True)
    _require(result.delivered_count == published.count, "ours", result)


def _copy_natively(stores: Stores, published: Published) -> None:
    copy_natively(stores, after=published.after, until=published.until)


def _deliver_frames(stores: Stores, _: Published) -> None:
    deliver_frames(stores)


def _deliver_loop(stores: Stores, _: Published) -> None:
    deliver_loop(stores)


def _run_dlt(backend: str, stores: Stores, published: Published) -> dict[str, float]:
    name = f"dlt_{backend}"
    done = run_dlt(stores, backend, after=published.after, until=published.until)
    _require(done.rows == published.count, name, done)
    without_load = done.extract_seconds + done.normalize_seconds
    return {name: without_load + done.load_seconds, f"{name}_extract_normalize": without_load}


def run_round(stores: Stores, everybody: dict[str, Contender], *, events: int, first: int) -> dict[str, float]:
    """Let everybody deliver the same new events, beginning with the *first*; return events a second by figure."""
    published = _publish(stores, everybody, events)
    names = list(everybody)
    rates: dict[str, float] = {}
    for name in names[first:] + names[:first]:
        part = published.first(everybody[name].most_events or events)
        vacuum(stores.engine)
        wait_for_merges(stores)
        taken = everybody[name].deliver(stores, part)
        rates |= {figure: part.count / seconds for figure, seconds in taken.items()}
    for contender in everybody.values():
        if contender.destination:
            _check(stores, contender.destination, published.first(contender.most_events or events))
    found = count_delivered(stores, after=published.after, until=published.until)
    _require(found == published.count, "ours", found)
    print(" ".join(f"{figure} {rate:,.0f}" for figure, rate in rates.items()), flush=True)
    return rates


def _publish(stores: Stores, everybody: dict[str, Contender], events: int) -> Published:
    after = last_position(stores.engine)
    publish(stores.engine, events, first=after + 1)
    published = Published(after, last_position(stores.engine))
    for contender in everybody.values():
        if contender.source:
            part = published.first(contender.most_events or events)
            fill_status_table(stores, contender.source, after=part.after, until=part.until)
    return published


def _check(stores: Stores, table: str, part: Published) -> None:
    bounds = {"after": part.after, "until": part.until}
    ours, theirs = (stores.client.rows(_SUMS, {**bounds, "name": name})[0] for name in (stores.client.table, table))
    _require(theirs == ours and theirs["rows"] == part.count, table, f"{theirs} instead of {ours}")


def _require(is_right: bool, name: str, found: object) -> None:
    if not is_right:
        raise RuntimeError(f"{name} did not deliver every event of the round once: {found}.")


def summarise(everybody: dict[str, Contender], rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Return the medians, and the ratios of the rounds."""
    rates: dict[str, list[float]] = defaultdict(list)
    for a_round in rounds:
        for figure in sorted(a_round):
            rates[figure].append(a_round[figure])
    return {
        figure: {
            "events_per_second": round(median(taken)),
            "ours_ratio": round(median(ours / theirs for ours, theirs in zip(rates["ours"], taken, strict=True)), 3),
            "rounds": [round(rate) for rate in taken],
            "lacks": everybody[figure.removesuffix("_extract_normalize")].lacks,
        }
        for figure, taken in rates.items()
    }


def main() -> None:
    """Run the rounds and keep the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--events", type=int, default=600_000, help="events a round")
    parser.add_argument("--loop-events", type=int, default=50_000, help="events a round of the loop of 1,000")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    everybody = contenders(given.loop_events)
    if not is_installed():
        print(HOW_TO_INSTALL)
    keep_freed_memory()  # as `outbox relay` does
    with fresh_stores(more_grants=NATIVE_GRANTS) as stores:
        create_tables(stores)
        rounds = [
            run_round(stores, everybody, events=given.events, first=nth % len(everybody)) for nth in range(given.rounds)
        ]
    save("side_by_side", {"events_a_round": given.events, "contenders": summarise(everybody, rounds)})


if __name__ == "__main__":
    main()
