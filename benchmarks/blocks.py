"""What each block of figures in the documentation shows: a table, made from the figures of a result.

One function a block; `tables` puts what it returns between the comments of a page. Nothing here reads or writes files.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]

#: Events a second on average when they are a billion a day, and how much more a busy hour is taken to bring.
BILLION_A_DAY = 1_000_000_000 / 86_400
PEAK_FACTOR = 3

#: Names of side_by_side's figures in tables and plots.
CONTENDERS = {
    "native": "ClickHouse reads PostgreSQL itself",
    "ours": "outbox-pipeline",
    "dlt_connectorx": "dlt into DuckDB, connectorx",
    "dlt_connectorx_extract_normalize": "dlt, connectorx, extract and normalize only",
    "dlt_pyarrow": "dlt into DuckDB, pyarrow",
    "dlt_pyarrow_extract_normalize": "dlt, pyarrow, extract and normalize only",
    "frames": "status column, read_sql and insert_df",
    "loop": "ORM loop, 1,000 rows a round",
}

_STAGES = ("cut", "request", "lease", "extract", "validate", "load", "mark")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a Markdown table; the first column is text, the others are figures."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(map(str, cells))} |" for cells in [header, rule, *rows]]


def number(value: float) -> str:
    """Write a figure with three digits, and counts whole."""
    if value == round(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1g}"


def _relay(figures: Figures) -> list[str]:
    header = ("context", "events", "batches", "events/s", "MB/s", "peak memory of the relay, MB", "of ClickHouse, MB")
    return table(
        header,
        (
            (
                f"{one['context_bytes']:,} bytes",
                number(one["events"]),
                number(one["batches"]),
                number(one["events_per_second"]),
                number(one["megabytes_per_second"]),
                number(one["relay_peak_mb"]),
                number(one["clickhouse_peak_mb"]),
            )
            for one in figures["rounds"]
        ),
    )


def _stages(figures: Figures) -> list[str]:
    rounds = figures["rounds"]
    header = ("ms per 100,000 events", *[f"{one['context_bytes']:,} bytes" for one in rounds])
    stages = [stage for stage in _STAGES if any(stage in one["ms_per_100000"] for one in rounds)]
    return table(header, ((stage, *[number(one["ms_per_100000"].get(stage, 0)) for one in rounds]) for stage in stages))


def _through_dagster(figures: Figures) -> list[str]:
    header = ("backlog", "events/s", "relay beside it, events/s", "ratio", "runs", "events a run", "peak of a run, MB")
    return table(
        header,
        (
            (
                number(one["events"]),
                number(one["events_per_second"]),
                number(one["relay_events_per_second"]),
                number(one["ratio_to_relay"]),
                number(one["runs"]["runs"]),
                number(one["runs"]["events_per_run"]),
                number(one["peaks"]["run_mb"]),
            )
            for one in figures["backlogs"]
        ),
    )


def _runs(figures: Figures) -> list[str]:
    backlogs = figures["backlogs"]
    header = ("seconds of a run, median", *[f"backlog of {number(one['events'])}" for one in backlogs])
    parts = [
        (part.replace("_", " "), *[number(one["runs"]["seconds"][part]) for one in backlogs])
        for part in backlogs[0]["runs"]["seconds"]
    ]
    share = ("share of start and end", *[f"{one['runs']['process_start_share']:.0%}" for one in backlogs])
    return table(header, [*parts, share])


def _latency(figures: Figures) -> list[str]:
    header = ("events/s wanted", "achieved", "p50, s", "p95, s", "p99, s", "largest, s", "events a run, median")
    return table(
        header,
        (
            (
                number(one["rate"]),
                number(one["achieved_events_per_second"]),
                *[number(one["latency_seconds"][part]) for part in ("p50", "p95", "p99", "max")],
                number(one["runs"]["events_per_run"]),
            )
            for one in figures["rates"]
        ),
    )


def _latency_parts(figures: Figures) -> list[str]:
    header = ("events/s wanted", "tick wait, s", "process start, s", "work, s", "whole, s")
    parts = ("tick_wait", "process_start", "work")
    return table(
        header,
        (
            (
                number(one["rate"]),
                *[number(one["parts_seconds"][part]["mean"]) for part in parts],
                number(one["latency_seconds"]["mean"]),
            )
            for one in figures["rates"]
        ),
    )


def _latency_ticks(figures: Figures) -> list[str]:
    header = (
        "events/s wanted",
        "tick that asked for a run, p50, s",
        "largest, s",
        "tick that did not, p50, s",
        "largest, s",
    )
    return table(
        header,
        (
            (
                number(one["rate"]),
                *[
                    number(one["ticks"][kind][part]) if part in one["ticks"][kind] else ""
                    for kind in ("asking", "skipping")
                    for part in ("p50", "max")
                ],
            )
            for one in figures["rates"]
        ),
    )


def _side_by_side(figures: Figures) -> list[str]:
    header = ("", "events/s, median", "ours is … times as fast", "does not do")
    found = sorted(figures["contenders"].items(), key=lambda item: -item[1]["events_per_second"])
    rows = (
        (
            f"**{CONTENDERS[name]}**" if name == "ours" else CONTENDERS.get(name, name),
            number(one["events_per_second"]),
            number(one["ours_ratio"]),
            "" if name == "ours" else one["lacks"],
        )
        for name, one in found
    )
    shown = table(header, rows)
    return [shown[0], "| --- | ---: | ---: | --- |", *shown[2:]]


def _scaling(figures: Figures) -> list[str]:
    header = ("relays", "events/s, together", "times one relay", "batches")
    return table(
        header,
        (
            (
                one["relays"],
                number(one["events_per_second"]),
                number(one["times_the_first"]),
                number(one["batches"]),
            )
            for one in figures["rounds"]
        ),
    )


def _ticks(figures: Figures) -> list[str]:
    header = ("state", "tick, ms", "largest cut, ms", "events in it", "`outbox status`, ms", "metrics, ms")
    return table(header, (_tick(state, one) for state, one in figures.items()))


def _tick(state: str, one: Figures) -> list[str]:
    cuts = list(zip(one.get("cut_ms", []), one.get("cut_events", []), strict=False))
    slowest = [number(value) for value in max(cuts)] if cuts else ["", ""]
    asked = [number(one[name]) if name in one else "" for name in ("status_ms", "metrics_ms")]
    return [state_name(state), number(tick_ms(one)), *slowest, *asked]


def state_name(state: str) -> str:
    """Return a state of `ticks` with its numbers as people write them."""
    return re.sub(r"\d{5,}", lambda digits: f"{int(digits[0]):,}", state)


def tick_ms(one: Figures) -> float:
    """Return how long a tick took in a state; where several in a row were measured, the slowest."""
    taken: float | list[float] = one["tick_ms"]
    return max(taken) if isinstance(taken, list) else taken


def _producer(figures: Figures) -> list[str]:
    header = ("", "events/s, best", "events/s, median", "client CPU, µs an event", "server CPU, µs an event")
    bulk = [
        (
            label,
            number(figures[key]["best_events_per_second"]),
            number(figures[key]["median_events_per_second"]),
            number(figures[key]["client_cpu_us_per_event"]),
            number(figures[key]["server_cpu_us_per_event"]),
        )
        for key, label in {"bulk": "`publish_events`", "bulk_by_copy": "COPY into a temporary table"}.items()
    ]
    one = figures["one_event"]
    return [
        *table(header, bulk),
        "",
        f"One `publish_event` takes {number(one['publish_event_us'])} µs, the same INSERT through the same session"
        f" {number(one['insert_us'])} µs: {number(one['ratio'])} times as long, as the median of pairs.",
    ]


def _held_xmin(figures: Figures) -> list[str]:
    header = (
        "",
        "first minute, events/s",
        "last minute, events/s",
        "ratio",
        "dead rows at the end",
        "tables and indexes, MB",
    )
    names = {"ours": "outbox-pipeline", "status_column": "status column, SKIP LOCKED"}
    shown = table(
        header,
        (
            (
                label,
                number(figures[key]["first_minute"]),
                number(figures[key]["last_minute"]),
                number(figures[key]["ratio"]),
                number(figures[key]["samples"][-1]["dead_rows"]),
                number((figures[key]["samples"][-1]["table_kb"] + figures[key]["samples"][-1]["index_kb"]) / 1000),
            )
            for key, label in names.items()
        ),
    )
    return [
        *shown,
        "",
        f"{number(figures['minutes'])} minutes, {number(figures['rate'])} events/s into each, drained every"
        f" {number(figures['every_seconds'])} s, held by {figures['held_by']};"
        f" the ledger's look at `unclaimed` took {number(figures['read_unclaimed_ms']['first'])} ms after the first"
        f" {number(figures['ours']['samples'][0]['second'])} s and"
        f" {number(figures['read_unclaimed_ms']['last'])} ms at the end.",
    ]


def _capacity(relay: Figures, *others: Figures | None) -> list[str]:
    needed = PEAK_FACTOR * BILLION_A_DAY
    header = ("what", "events/s", "events a day at that rate", f"of them for {needed:,.0f} events/s")
    return table(
        header,
        (
            (what, number(rate), f"{rate * 86_400 / 1e9:.2f} billion", f"{needed / rate:,.2f}")
            for what, rate in _rates(relay, *others)
        ),
    )


def _rates(
    relay: Figures, through_dagster: Figures | None, scaling: Figures | None, producer: Figures | None
) -> Iterator[tuple[str, float]]:
    smallest = relay["rounds"][0]
    costs = smallest["ms_per_100000"]
    yield "one relay, one machine", smallest["events_per_second"]
    if through_dagster:
        largest = through_dagster["backlogs"][-1]
        yield f"Dagster, one machine, backlog of {number(largest['events'])}", largest["events_per_second"]
    for one in scaling["rounds"][1:] if scaling else ():
        yield f"{one['relays']} relays, one machine", one["events_per_second"]
    yield "the cutter, alone", float(f"{1e8 / (costs['cut'] + costs['request']):.3g}")
    yield "extracting, in one process", float(f"{1e8 / costs['extract']:.3g}")
    yield "loading and proving, in one process", float(f"{1e8 / costs['load']:.3g}")
    if producer:
        yield "publishing in bulk, one connection", producer["bulk"]["best_events_per_second"]


def _wal(figures: Figures) -> list[str]:
    each = figures["bulk"]["wal_bytes_per_event"]
    cpu = figures["bulk"]["server_cpu_us_per_event"]
    return [
        f"Publishing in bulk writes {number(each)} bytes of WAL an event and takes {number(cpu)} µs of one of"
        f" PostgreSQL's cores: at {number(PEAK_FACTOR * BILLION_A_DAY)} events/s that is"
        f" {number(each * PEAK_FACTOR * BILLION_A_DAY / 1e6)} MB/s of WAL and"
        f" {number(cpu * PEAK_FACTOR * BILLION_A_DAY / 1e6)} cores,"
        f" and {number(each * 1e9 / 1e12)} TB of WAL a day.",
    ]


@dataclass(frozen=True)
class Block:
    """What writes a block: the result it shows, others it may use, and the words for its picture where it has one."""

    source: str
    write: Callable[..., list[str]]
    picture: str = ""
    others: tuple[str, ...] = ()


_HELD = "Throughput of drains and dead rows over the minutes, ours and a status column, while a transaction stays open"

BLOCKS: dict[str, Block] = {
    "relay": Block(
        "relay", _relay, "Events a second of the relay by size of context, and each stage's share of its time"
    ),
    "relay-stages": Block("relay", _stages),
    "side_by_side": Block("side_by_side", _side_by_side, "Speed of other ways to deliver, as multiples of ours"),
    "through_dagster": Block(
        "through_dagster", _through_dagster, "Events a second through Dagster beside the relay, and a run's time"
    ),
    "through_dagster-runs": Block("through_dagster", _runs),
    "latency": Block("latency", _latency, "Percentiles of the latency by rate, and its three parts"),
    "latency-parts": Block("latency", _latency_parts),
    "latency-ticks": Block("latency", _latency_ticks),
    "ticks": Block("ticks", _ticks, "Milliseconds of a tick that cuts nothing, in each state of the outbox"),
    "producer": Block("producer", _producer),
    "held_xmin": Block("held_xmin", _held_xmin, _HELD),
    "held_xmin_publishing": Block("held_xmin_publishing", _held_xmin, _HELD),
    "scaling": Block("scaling", _scaling, "Events a second of one, two and four relays together"),
    "capacity": Block("relay", _capacity, others=("through_dagster", "scaling", "producer")),
    "wal": Block("producer", _wal),
}
