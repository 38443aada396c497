"""Draw the figures of `results/*.json` as docs/images/benchmarks/*.svg.

`python -m benchmarks.plots [--results FOLDER] [--into FOLDER] [--format svg|png]`

A chart whose result is missing is left out and one sentence says so. Colours are Okabe and Ito's, which colour-blind
readers tell apart; the background is white, so that the pictures can be read on a dark page too.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.blocks import CONTENDERS, Figures, number, state_name, tick_ms
from benchmarks.tables import PAGES, RESULTS, read_results

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter
except ModuleNotFoundError:
    sys.exit("The plots need matplotlib: 'make bench' installs it, or the dependency group bench of pyproject.toml.")

IMAGES = PAGES / "images" / "benchmarks"

OURS, THEIRS = "#0072B2", "#D55E00"
_GREY, _LIGHT = "#6B6B6B", "#D9D9D9"
_SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_STAGE_COLOURS = {
    "cut": "#F0E442",
    "request": "#CC79A7",
    "lease": "#6B6B6B",
    "extract": "#0072B2",
    "validate": "#E69F00",
    "load": "#009E73",
    "mark": "#D55E00",
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "outbox-pipeline",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": "#222222",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.axisbelow": True,
    "grid.color": _LIGHT,
    "grid.linewidth": 0.7,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "legend.frameon": False,
    "savefig.facecolor": "white",
}


def draw_relay(figure: Figure, figures: Figures) -> None:
    """Show events a second by size of context, and which stage the time of a delivery goes to."""
    rounds = figures["rounds"]
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.6])
    labels = [_bytes(one["context_bytes"]) for one in rounds]
    bars = left.bar(labels, [one["events_per_second"] for one in rounds], color=OURS, width=0.6)
    texts = [f"{number(one['events_per_second'])}\n{one['megabytes_per_second']:,.0f} MB/s" for one in rounds]
    left.bar_label(bars, texts, padding=2)
    _plain_axis(left, "events a second", "Relay, validation and proof included")
    left.set_ylim(0, max(one["events_per_second"] for one in rounds) * 1.2)
    left.set_xlabel("size of a context")
    _stack(right, labels, [one["ms_per_100000"] for one in rounds], _STAGE_COLOURS)
    right.set_xlabel("share of the stages' time, % (stages may overlap)")
    right.set_title("Where the time goes")


def draw_side_by_side(figure: Figure, figures: Figures) -> None:
    """Show every contender's speed as a multiple of ours."""
    axes = figure.subplots()
    found = figures["contenders"]
    speeds = {name: 1 / one["ours_ratio"] for name, one in found.items() if one.get("ours_ratio")} | {"ours": 1.0}
    names = sorted(speeds, key=lambda name: speeds[name])
    colours = [OURS if name == "ours" else _LIGHT for name in names]
    bars = axes.barh([CONTENDERS.get(name, name) for name in names], [speeds[name] for name in names], color=colours)
    texts = [f"{speeds[name]:.2f} = {number(found[name]['events_per_second'])} events/s" for name in names]
    axes.axvline(1, color=OURS, linewidth=1)
    axes.bar_label(bars, texts, padding=4, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
    axes.set_xlim(0, max(speeds.values()) * 1.55)
    axes.set_xlabel("speed in the same run, ours = 1")
    axes.set_title("Contexts of 300 bytes, side by side")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def draw_held_xmin(figure: Figure, figures: Figures) -> None:
    """Show throughput and dead rows over time while one transaction stays open."""
    upper, lower = figure.subplots(2, 1, sharex=True)
    for key, label, colour in (("ours", "outbox-pipeline", OURS), ("status_column", "status column", THEIRS)):
        samples = figures[key]["samples"]
        minutes = [one["second"] / 60 for one in samples]
        style: dict[str, Any] = {"color": colour, "linewidth": 2, "linestyle": "-" if key == "ours" else "--"}
        upper.plot(minutes, [one["events_per_second"] for one in samples], label=label, **style)
        lower.plot(minutes, [one["dead_rows"] for one in samples], label=label, **style)
        _name_line(upper, minutes[-1], samples[-1]["events_per_second"], label, colour)
        _name_line(lower, minutes[-1], samples[-1]["dead_rows"], label, colour)
    _plain_axis(upper, "events/s of a drain", f"Throughput while {figures['held_by']} stays open")
    _plain_axis(lower, "dead rows", "Row versions that nobody may remove")
    lower.set_yscale("symlog", linthresh=10)
    lower.set_ylim(0, 10 ** (len(str(max(one["dead_rows"] for one in figures["status_column"]["samples"])))))
    lower.yaxis.set_major_formatter(FuncFormatter(_thousands))
    lower.set_xlabel(f"minutes, at {number(figures['rate'])} events/s")
    lower.set_xlim(0, max(one["second"] for one in figures["ours"]["samples"]) / 60 * 1.22)


def draw_latency(figure: Figure, figures: Figures) -> None:
    """Show percentiles of the latency by rate, and its parts."""
    left, right = figure.subplots(1, 2, sharey=True)
    rates = figures["rates"]
    labels = [f"{one['rate']:,}" for one in rates]
    markers = {"p50": "o", "p95": "s", "p99": "^"}
    for (part, marker), colour in zip(markers.items(), (OURS, "#E69F00", THEIRS), strict=True):
        values = [one["latency_seconds"][part] for one in rates]
        left.plot(labels, values, marker=marker, label=part, color=colour, linewidth=2)
    left.legend(loc="upper left")
    _plain_axis(left, "seconds from commit to visible", "Latency through Dagster")
    left.set_xlabel("events a second, sustained")
    bottom = [0.0] * len(rates)
    for part, colour in {"tick_wait": OURS, "process_start": "#E69F00", "work": "#009E73"}.items():
        values = [one["parts_seconds"][part]["mean"] for one in rates]
        right.bar(labels, values, bottom=bottom, color=colour, width=0.6, label=part.replace("_", " "))
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    right.legend(loc="upper left")
    right.set_ylim(0, max([*bottom, *[one["latency_seconds"]["p99"] for one in rates]]) * 1.35)
    _plain_axis(right, "", "Its three parts, means")
    right.set_xlabel("events a second, sustained")


def draw_through_dagster(figure: Figure, figures: Figures) -> None:
    """Show the stack beside the relay for each backlog, and what a run's seconds go to."""
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    backlogs = figures["backlogs"]
    labels = [f"{one['events']:,}" for one in backlogs]
    for shift, key, label, colour in (
        (-0.2, "relay_events_per_second", "relay", _LIGHT),
        (0.2, "events_per_second", "through Dagster", OURS),
    ):
        places = [place + shift for place in range(len(backlogs))]
        bars = left.bar(places, [one[key] for one in backlogs], width=0.38, color=colour, label=label)
        left.bar_label(bars, [number(one[key]) for one in backlogs], padding=2, fontsize=8)
    left.set_xticks(range(len(backlogs)), labels)
    left.set_ylim(
        0, max(one[key] for one in backlogs for key in ("relay_events_per_second", "events_per_second")) * 1.3
    )
    left.legend(loc="upper left", ncols=2, fontsize=8)
    _plain_axis(left, "events a second", "A backlog through Dagster")
    left.set_xlabel("events in the backlog")
    seconds = [one["runs"]["seconds"] for one in backlogs]
    colours = dict(zip(seconds[0], _SERIES, strict=False))
    _stack(right, labels, seconds, colours, is_share=False)
    right.set_xlabel("seconds (medians over the runs)")
    right.set_title("What a run's time goes to")


def draw_scaling(figure: Figure, figures: Figures) -> None:
    """Show the throughput of several relays on one outbox."""
    axes = figure.subplots()
    rounds = figures["rounds"]
    speeds = [one["events_per_second"] for one in rounds]
    bars = axes.bar([str(one["relays"]) for one in rounds], speeds, color=OURS, width=0.6)
    texts = [f"{number(one['events_per_second'])}\n× {one['times_the_first']:.2f}" for one in rounds]
    axes.bar_label(bars, texts, padding=2)
    _plain_axis(axes, "events a second, together", "Several relays on one outbox")
    axes.set_ylim(0, max(speeds) * 1.2)
    axes.set_xlabel("relays")


def draw_ticks(figure: Figure, figures: Figures) -> None:
    """Show what a tick that cuts nothing costs in each state of the outbox."""
    axes = figure.subplots()
    taken = {state_name(state): tick_ms(one) for state, one in reversed(figures.items())}
    bars = axes.barh(list(taken), list(taken.values()), color=OURS, height=0.65)
    axes.bar_label(bars, [number(value) for value in taken.values()], padding=4)
    axes.axvline(200, color=THEIRS, linestyle="--", linewidth=1)
    axes.set_xlim(0, max(220, *taken.values()) * 1.08)
    axes.set_xlabel("ms in PostgreSQL (dashed: the target, 200 ms)")
    axes.set_title("A sensor tick that cuts nothing, by state of the outbox")


#: Chart, named as the result it shows → what draws it, its width and height in inches.
CHARTS: dict[str, tuple[Callable[[Figure, Figures], None], tuple[float, float]]] = {
    "relay": (draw_relay, (9, 3.6)),
    "side_by_side": (draw_side_by_side, (8, 3.8)),
    "held_xmin": (draw_held_xmin, (8, 5)),
    "held_xmin_publishing": (draw_held_xmin, (8, 5)),
    "latency": (draw_latency, (9, 3.8)),
    "through_dagster": (draw_through_dagster, (9, 3.6)),
    "scaling": (draw_scaling, (5, 3.4)),
    "ticks": (draw_ticks, (9, 5.2)),
}


def draw(results: dict[str, Figures], into: Path, *, kind: str = "svg") -> list[str]:
    """Draw every chart that has a result; return the names of those that have none."""
    into.mkdir(parents=True, exist_ok=True)
    for name, (drawn, size) in CHARTS.items():
        if name in results:
            with mpl.rc_context(_STYLE):
                figure = Figure(figsize=size, layout="constrained")
                drawn(figure, results[name]["figures"])
                # No date inside: the same figures make the same file.
                figure.savefig(into / f"{name}.{kind}", metadata={"Date": None} if kind == "svg" else None, dpi=110)
    return [name for name in CHARTS if name not in results]


def _stack(
    axes: Axes, labels: Sequence[str], rows: list[dict[str, float]], colours: dict[str, str], *, is_share: bool = True
) -> None:
    left = [0.0] * len(rows)
    totals = [sum(row.values()) if is_share else 1.0 for row in rows]
    for part, colour in colours.items():
        values = [row.get(part, 0) / total * (100 if is_share else 1) for row, total in zip(rows, totals, strict=True)]
        axes.barh(labels, values, left=left, color=colour, height=0.55, label=part.replace("_", " "), edgecolor="white")
        left = [low + value for low, value in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=4, fontsize=9)


def _plain_axis(axes: Axes, label: str, title: str) -> None:
    axes.set_ylabel(label)
    axes.set_title(title)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.yaxis.set_major_formatter(FuncFormatter(_thousands))


def _name_line(axes: Axes, x: float, y: float, label: str, colour: str) -> None:
    axes.annotate(label, (x, y), xytext=(6, 0), textcoords="offset points", color=colour, va="center", weight="bold")


def _thousands(value: float, _: object = None) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _bytes(count: int) -> str:
    return f"{count / 1000:g} KB" if count >= 1000 else f"{count} B"


def main() -> None:
    """Draw, and say what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--into", type=Path, default=IMAGES, help="folder of the pictures")
    parser.add_argument("--format", choices=["svg", "png"], default="svg")
    given = parser.parse_args()
    missing = draw(read_results(given.results), given.into, kind=given.format)
    if missing:
        print(f"No chart of {', '.join(missing)}: there is no result in {given.results}.")


if __name__ == "__main__":
    main()
