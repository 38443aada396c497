"""What commands write: results to stdout for people or machines, progress to stderr.

Invariants: with `--json`, stdout holds JSON and nothing else. What producers wrote is never obeyed by a terminal: there
control characters are shown as escapes; into a pipe or a file data goes as it is.
"""

import codecs
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from outbox_pipeline.logs import escaped

if TYPE_CHECKING:
    from rich.progress import Progress

#: The colours of the words that judge.
_VERDICTS = {
    **dict.fromkeys(("WRONG", "MISSING", "parked", "failed", "unknown", "missing", "doubled"), "red"),
    **dict.fromkeys(("WARN", "held", "quarantined", "gone"), "yellow"),
    **dict.fromkeys(("ok", "delivered"), "green"),
}

#: The option that every command with a machine-readable answer has.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine instead of text for a person.")]


def print_json(value: object) -> None:
    """Print a dataclass, or anything made of plain values, as one line of JSON."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    text = json.dumps(plain, default=_as_text, ensure_ascii=False)
    typer.echo(_json_escaped(text) if sys.stdout.isatty() else text)


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Print names and values in two columns."""
    width = max(len(escaped(name)) for name, _ in facts)
    for name, value in facts:
        said = shown(value)
        # A count is a verdict by its name where it is not 0, a status by its word.
        colour = _VERDICTS.get(name) if value and isinstance(value, int) else _VERDICTS.get(said)
        typer.echo(f"{strong(escaped(name).ljust(width))}   {coloured(said, colour)}")


def print_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their column names: lines as lines, other control characters as escapes, nothing as markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in names:
        table.add_column(Text(escaped(name)), overflow="fold")
    for row in rows:
        table.add_row(*[Text(_cell(value)) for value in row])
    Console().print(table)


def print_rows(names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows as `print_table` does, or one below the other where a table of several columns would not fit."""
    from rich.cells import cell_len
    from rich.console import Console

    cells = [[_cell(value) for value in row] for row in rows]
    titles = [escaped(name) for name in names]
    longest = [
        max(cell_len(line.expandtabs()) for cell in column for line in cell.split("\n"))
        for column in zip(titles, *cells, strict=True)
    ]
    if len(names) == 1 or sum(longest) + 3 * len(longest) + 1 <= Console().width:
        print_table(names, rows)
        return
    width = max(map(cell_len, titles))
    for number, row in enumerate(cells, 1):
        typer.echo(f"Row {number:,}")
        for title, cell in zip(titles, row, strict=True):
            begin = f"  {strong(title)}{' ' * (width - cell_len(title))}   "
            typer.echo(begin + cell.replace("\n", f"\n{' ' * (width + 5)}"))


def _cell(value: object) -> str:
    return "NULL" if value is None else escaped(str(value), besides="\n\t")


def strong(text: str) -> str:
    """Return *text* in bold where stdout is a terminal that may have colours."""
    return typer.style(text, bold=True) if has_colours() else text


def coloured(text: str, colour: str | None) -> str:
    """Return *text* in a colour where stdout is a terminal that may have them."""
    return typer.style(text, fg=colour) if colour and has_colours() else text


def verdict(word: str) -> str:
    """Return a word that judges in its colour: red needs somebody, yellow a look, green nothing."""
    return coloured(word, _VERDICTS.get(word.strip()))


def has_colours() -> bool:
    """Tell whether stdout shows colours: it is a terminal, and NO_COLOR (https://no-color.org) is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def shown(value: object) -> str:
    """Return a value as a person reads it: numbers with separators, times to the second, nothing as a dash.

    Characters that could move a terminal's cursor or colour its text are shown as escapes.
    """
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return escaped(str(value))


def quoted(value: str) -> str:
    """Return *value* in single quotes, as any POSIX shell reads it back."""
    return "'" + value.replace("'", "'\"'\"'") + "'"


def copy_to_terminal(pieces: Iterable[bytes], *, as_json: bool) -> None:
    """Write what a server sends to stdout, a terminal: control characters as escapes, with *as_json* as JSON's own."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        text = decoder.decode(piece)
        sys.stdout.write(_json_escaped(text) if as_json else escaped(text, besides="\n\t"))
    sys.stdout.write(decoder.decode(b"", final=True))
    sys.stdout.flush()


def _json_escaped(text: str) -> str:
    # Outside of its strings JSON is printable, but for the ends of lines.
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text)


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Let Ctrl-C, and a pipe that nobody reads any more, be the end of the block."""
    try:
        yield
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # Python would flush stdout once more when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress(*columns: str) -> "Progress":
    """Return a live display on stderr that shows *columns* of its tasks' fields; silent without a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    texts = [TextColumn(f"{{task.fields[{column}]}} {column}") for column in columns]
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        *texts,
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _as_text(value: Any) -> str:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here")
