"""The days a command is for: its options --from and --to."""

from typing import TYPE_CHECKING, Annotated

import typer

from outbox_pipeline.errors import UsageError

if TYPE_CHECKING:
    from outbox_pipeline.days import Window

FirstDay = Annotated[str, typer.Option("--from", metavar="DAY", help="First UTC day, e.g. 2026-03-01.")]
LastDay = Annotated[str, typer.Option("--to", metavar="DAY", help="Last UTC day, included.")]


def window_of(first_day: str, last_day: str) -> "Window":
    """Return the days that are meant, all of them without words; what cannot be meant is wrong use."""
    from outbox_pipeline.days import ALL_DAYS, Window
    from outbox_pipeline.times import parse_day

    try:
        first = parse_day(first_day, "--from") if first_day else ALL_DAYS.first_day
        last = parse_day(last_day, "--to") if last_day else ALL_DAYS.last_day
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None
    if first > last:
        raise typer.BadParameter(f"--from {first} is after --to {last}")
    return Window(first, last)
