"""The command `demo`: a small shop publishes, Dagster delivers, and both sides are compared at the end."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, progress, quoted
from outbox_pipeline.cli.up import DEFAULT_PORT, Port, interruptible, revival, watch, whole_stack

if TYPE_CHECKING:
    from outbox_pipeline.demo.day import Look, ShopDay
    from outbox_pipeline.demo.report import Report
    from outbox_pipeline.orchestration.host.stack import DagsterStack
    from outbox_pipeline.settings import Settings

#: What a person reads where the name in the JSON does not say it.
_LABELS = {
    "rolled_back_delivered": "rolled back but delivered",
    "misjudged": "wrongly accepted or refused",
    "suspects": "events to look at",
}
#: Pause between two lines of progress of one phase, where no terminal can show a live one.
_LINE_SECONDS = 5.0


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    events: Annotated[int, typer.Option(help="Events the shop commits.", min=10)] = 1000,
    exits: Annotated[
        bool, typer.Option("--exit", help="End after the report instead of leaving the Dagster UI up.")
    ] = False,
    as_json: AsJson = False,
    port: Port = DEFAULT_PORT,
) -> None:
    """Watch it work: a small shop writes orders and their events, some roll back, and Dagster delivers meanwhile.

    The shop has tables of its own, in PostgreSQL's schema `shop`. The report compares both sides event by event. Exit
    code 1 when an event is missing, doubled or should not have arrived, or when stopped before the report.

    Example: outbox demo --events 5000 --exit --json
    """
    is_clean, opened = False, list["ShopDay"]()
    beforehand = partial(_open_shop, opened)
    with interruptible(), whole_stack(port=port, beforehand=beforehand) as (settings, url, stack):
        (day,) = opened
        typer.echo(f"Dagster UI: {url}", err=True)
        report = _hold(day, stack, event_count=events)
        is_clean = report.comparison.is_clean
        show_report(report, as_json=as_json)
        if is_clean:
            typer.secho("Every committed event is where it belongs, exactly once.", fg="green", err=True)
        else:
            complain(_mismatch(report, day, settings))
        if not exits:
            _leave_up(url, stack, day)
    if not is_clean:
        raise typer.Exit(1)


@contextmanager
def _open_shop(opened: "list[ShopDay]", settings: "Settings") -> Iterator[None]:
    """Open a shop, put it on the list, and close it when the block ends."""
    from outbox_pipeline.demo.day import ShopDay

    with closing(ShopDay(settings)) as day:
        day.open()
        opened.append(day)
        yield


def _hold(day: "ShopDay", stack: "DagsterStack | None", *, event_count: int) -> "Report":
    with _display(event_count) as (show, say):
        revive = revival(stack) if stack is not None else list[str]

        def look(seen: "Look") -> None:
            show(seen)
            for told in revive():
                say(told)

        return day.run(event_count, look)


@contextmanager
def _display(event_count: int) -> "Iterator[tuple[Callable[[Look], None], Callable[[str], None]]]":
    """Yield what shows a look at the shop, and what says a sentence beside that."""
    with progress("published", "delivered", "quarantined", "lag") as display:
        if display.disable:
            yield _line_by_line(), partial(typer.echo, err=True)
            return
        task = display.add_task("Opening the shop", total=event_count, published=0, delivered=0, quarantined=0, lag="–")

        def show(seen: "Look") -> None:
            done = seen.delivered + (seen.quarantined or 0)
            display.update(task, description=seen.phase, completed=done, **_fields(seen))

        yield show, display.console.print


def _line_by_line() -> "Callable[[Look], None]":
    last, phase = time.monotonic(), ""

    def show(seen: "Look") -> None:
        nonlocal last, phase
        if seen.phase != phase or time.monotonic() - last >= _LINE_SECONDS:
            last, phase = time.monotonic(), seen.phase
            counts = ", ".join(f"{name} {value}" for name, value in _fields(seen).items())
            typer.echo(f"{seen.phase}: {counts}", err=True)

    return show


def _fields(seen: "Look") -> dict[str, Any]:
    lag = "–" if seen.lag_seconds is None else f"{seen.lag_seconds:.1f} s"
    quarantined = "–" if seen.quarantined is None else seen.quarantined
    return {"published": seen.published, "delivered": seen.delivered, "quarantined": quarantined, "lag": lag}


def show_report(report: "Report", *, as_json: bool) -> None:
    """Print the comparison and the times, as JSON or in words for a person."""
    plain = asdict(report)
    flat = {**plain.pop("comparison"), **plain}
    if as_json:
        print_json(flat)
        return
    suspects = flat.pop("suspects")
    flat["suspects"] = ", ".join(map(str, suspects)) or "none"
    print_facts([(_LABELS.get(name, name.replace("_", " ")), value) for name, value in flat.items()])


def _mismatch(report: "Report", day: "ShopDay", settings: "Settings") -> str:
    counted = report.comparison
    status = day.status
    said = "PostgreSQL does not answer" if status is None else f"last error: {status.last_error or 'none'}"
    if status is not None and status.undelivered:
        said = f"{status.pending} pending, {status.in_flight} in flight, {status.parked} parked, {said}"
    return (
        f"Both sides differ: {counted.missing} missing, {counted.duplicated} duplicated, "
        f"{counted.rolled_back_delivered} of rolled back transactions, "
        f"{counted.misjudged} wrongly accepted or refused ({said}). "
        f"Look at one with 'outbox trace {counted.suspects[0]}', and into {settings.home / 'logs'}."
    )


def in_another_terminal(command: str) -> str:
    """Say where a command finds the home of this process: OUTBOX_HOME has its place, else the folder."""
    home = os.environ.get("OUTBOX_HOME")
    # Another terminal has another home, and would make a new, empty outbox there.
    where, before = ("any", f"export OUTBOX_HOME={quoted(str(Path(home).absolute()))}; ") if home else ("this", "")
    return f"In another terminal, in {where} folder, the life of the first event:  {before}{command}"


def _leave_up(url: str, stack: "DagsterStack | None", day: "ShopDay") -> None:
    from outbox_pipeline.demo.visits import EVENING_PAUSE_SECONDS

    typer.echo(
        f"\nDagster UI: {url}\n"
        f"  1. What was delivered (Plots, then Events: a point for every batch):  {url}/assets/event_log\n"
        f"  2. What the sensor saw and started at each tick:  {url}/locations/outbox_pipeline/sensors/outbox_sensor\n"
        f"  3. The runs, one a batch, with the time of each step:  {url}/runs\n"
        + in_another_terminal(f"outbox trace {day.opening_id}"),
        err=True,
    )
    if stack is None:
        typer.echo("It goes on running: another 'outbox up' on this home started it.", err=True)
        return
    typer.echo(
        f"The shop goes on, with a customer every {EVENING_PAUSE_SECONDS:.0f} seconds, so there is always something to "
        "see. Ctrl-C ends it.",
        err=True,
    )
    with day.evening():
        watch(revival(stack))
