"""The command `delivered`: how far each day is delivered, as analysts see it."""

from datetime import date
from typing import TYPE_CHECKING

import typer

from outbox_pipeline.cli.support.days import FirstDay, LastDay, window_of
from outbox_pipeline.cli.support.engines import ready_settings
from outbox_pipeline.cli.support.output import AsJson, print_json, shown

if TYPE_CHECKING:
    from outbox_pipeline.days import DeliveredDay


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("delivered")(delivered)


def delivered(*, first_day: FirstDay = None, last_day: LastDay = None, as_json: AsJson = False) -> None:
    """Show of each day whether all of its events are delivered, or up to when, with counts.

    Writes the table in ClickHouse first, so that what is shown is true now. Exit code 1 when one of the days before
    today is not complete.

    Example: `outbox delivered --from 2026-03-01 --to 2026-03-31`
    """
    from outbox_pipeline.clickhouse.completeness import read_delivered
    from outbox_pipeline.days import FIRST_DAY, LAST_DAY
    from outbox_pipeline.operations.completeness import record_completeness
    from outbox_pipeline.stores import open_stores

    window = window_of(first_day, last_day)
    bounds = (max(window.first_day, FIRST_DAY), min(window.last_day, LAST_DAY))
    with ready_settings() as settings, open_stores(settings) as stores:
        now = record_completeness(stores).written_at.date()
        days = read_delivered(stores.client, from_day=bounds[0], until_day=bounds[1])
    if as_json:
        print_json([vars(day) for day in days])
    else:
        _print_days(days)
    if any(not day.is_complete and day.day < now for day in days):
        raise typer.Exit(1)


def _print_days(days: "list[DeliveredDay]") -> None:
    if not days:
        typer.echo("No event was recorded on these days.", err=True)
    for day in days:
        typer.echo(f"{day.day}  {_through(day, day.day)}  {_counts(day)}")


def _through(day: "DeliveredDay", on: date) -> str:
    if day.is_complete:
        return "complete        "
    through = day.complete_through
    if through.date() < on:
        return "not complete yet"
    return f"through {through:%H:%M:%S}"


def _counts(day: "DeliveredDay") -> str:
    counts = {
        "delivered": day.event_count,
        "on their way": day.undelivered_count,
        "quarantined": day.quarantined_count,
        "discarded": day.discarded_count,
        "replaced": day.replaced_count,
    }
    return ", ".join(f"{shown(count)} {word}" for word, count in counts.items() if count or word == "delivered")
