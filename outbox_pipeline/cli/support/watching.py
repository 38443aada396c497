"""A look at the outbox again and again: a small table that stays in its place on a terminal, else a line for each look.

Invariant: whatever a look shows was escaped before; an outage of PostgreSQL is told once and waited for.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.support.output import print_json, shown
from outbox_pipeline.errors import InDoubtError, TransientError, sentence_of

if TYPE_CHECKING:
    from rich.table import Table

    from outbox_pipeline.monitoring.status import Status

#: Looks that a sparkline shows.
_KEPT = 40
_BARS = "▁▂▃▄▅▆▇█"
#: A look that takes long makes the next one later: of this process's time at most a fifth is PostgreSQL's.
_PAUSE_PER_LOOK = 4

#: The series of the table, in its order.
_SERIES = ("pending", "in flight", "events/s", "lag", "parked", "held")


@dataclass
class Watched:
    """The latest look, the figures of those before it, and what keeps the next one from being made."""

    latest: "Status | None" = None
    problem: str | None = None
    _series: dict[str, deque[float]] = field(default_factory=lambda: {name: deque(maxlen=_KEPT) for name in _SERIES})
    _at: float = 0.0

    def add(self, found: "Status", at: float) -> None:
        """Add a look that was made at that moment, in seconds of any clock that goes on."""
        rate = 0.0
        if self.latest is not None and at > self._at:
            # A replay takes its batches back to those on their way.
            rate = max(0, found.processed - self.latest.processed) / (at - self._at)
        figures = (found.pending, found.in_flight, rate, found.lag_seconds, found.parked, found.quarantined)
        for name, figure in zip(_SERIES, figures, strict=True):
            self._series[name].append(figure)
        self.latest, self._at, self.problem = found, at, None

    def figure(self, name: str) -> str:
        """Return the latest figure as a person reads it."""
        value = self._series[name][-1]
        if name == "lag":
            return f"{value:,.1f} s"
        at_least = "≥ " if name == "pending" and self.latest and self.latest.pending_is_at_least else ""
        return f"{at_least}{value:,.0f}"

    def rate(self) -> float:
        """Return how many events a second were marked between the last two looks."""
        return round(self._series["events/s"][-1], 3)

    def sparkline(self, name: str) -> str:
        """Return the figures as bars, each in proportion to the highest."""
        values = self._series[name]
        top = max(values, default=0)
        steps = len(_BARS) - 1
        return "".join(_BARS[round(value / top * steps) if top else 0] for value in values)


def watch(look: Callable[[], "Status"], *, interval_seconds: float, as_json: bool) -> None:
    """Show what *look* finds until the block is left by an exception, such as that of Ctrl-C."""
    watched = Watched()
    with _display(as_json=as_json) as show:
        while True:
            started = time.monotonic()
            try:
                watched.add(look(), started)
            except (TransientError, InDoubtError) as error:
                watched.problem = sentence_of(error)
            show(watched)
            time.sleep(max(interval_seconds, (time.monotonic() - started) * _PAUSE_PER_LOOK))


@contextmanager
def _display(*, as_json: bool) -> Iterator[Callable[[Watched], None]]:
    if as_json or not sys.stdout.isatty():
        yield _Lines(as_json=as_json)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:
        yield lambda watched: live.update(_table(watched), refresh=True)


class _Lines:
    """A line for each look."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._told: str | None = None

    def __call__(self, watched: Watched) -> None:
        if watched.problem is not None or watched.latest is None:
            if self._told is None:
                self._told = watched.problem
                complain(f"{watched.problem} This goes on by itself when the server is back.")
            return
        if self._told is not None:
            self._told = None
            typer.echo("PostgreSQL answers again.", err=True)
        if self._as_json:
            print_json({**asdict(watched.latest), "events_per_second": watched.rate()})
        else:
            typer.echo(", ".join(f"{name} {watched.figure(name)}" for name in _SERIES))


def _table(watched: Watched) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{datetime.now(UTC):%H:%M:%S} UTC, Ctrl-C ends it", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    found = watched.latest
    if found is not None:
        for name in _SERIES:
            is_wrong = name in ("parked", "held") and watched.figure(name) != "0"
            table.add_row(name, Text(watched.figure(name), style="red" if is_wrong else ""), watched.sparkline(name))
    said = [watched.problem, found.problem if found else None, found.last_error if found else None]
    for each in filter(None, said):
        table.caption = Text(shown(each), style="red")
        table.caption_justify = "left"
        break
    return table
