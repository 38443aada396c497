"""The days a command is for: its options --from and --to.

Invariant: an option that is given says a day; an empty word, as of a shell variable that is not set, is none.
"""

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from outbox_pipeline.errors import UsageError

if TYPE_CHECKING:
    from outbox_pipeline.days import Window

# Optional[] and not `| None`: typer then shows the bare type in its usage line.
FirstDay = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--from", metavar="DAY", help="First UTC day, e.g. 2026-03-01; the first there is when left out."),
]
LastDay = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--to", metavar="DAY", help="Last UTC day, included; the last there is when left out."),
]


def window_of(first_day: str | None, last_day: str | None) -> "Window":
    """Return the days that are meant, all of them when none is given. Raises UsageError that names the wrong option."""
    from outbox_pipeline.days import ALL_DAYS, Window
    from outbox_pipeline.times import parse_day

    first = ALL_DAYS.first_day if first_day is None else parse_day(first_day, "--from")
    last = ALL_DAYS.last_day if last_day is None else parse_day(last_day, "--to")
    if first > last:
        raise UsageError(f"--from {first} is after --to {last}: --to must not be the earlier one.")
    return Window(first, last)
