"""What `up` and `demo` show while they start: a list whose names are ticked off on a terminal, else a line for each."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import typer

#: Told the name of a part of the whole when it is up.
Tell = Callable[[str], None]


@contextmanager
def starting(parts: Sequence[str]) -> Iterator[Tell]:
    """Show what is still to come of *parts*, and what is up after how many seconds, on stderr until the block ends."""
    began = time.monotonic()

    def line(name: str) -> str:
        return f"{name} is up after {time.monotonic() - began:.1f} s"

    if not sys.stderr.isatty():
        typer.echo(f"Starting {', '.join(parts)} …", err=True)
        yield lambda name: typer.echo(f"{line(name)}.", err=True)
        return
    from rich.console import Console

    console, coming = Console(stderr=True, highlight=False), list(parts)
    with console.status(f"Starting {', '.join(coming)} …") as status:

        def tell(name: str) -> None:
            console.print(f"[green]✓[/green] {line(name)}")
            coming[:] = [part for part in coming if part != name]
            status.update(f"Starting {', '.join(coming)} …" if coming else "Ready")

        yield tell
