"""The command `sql`: have ClickHouse carry out a statement."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from outbox_pipeline.cli.support.engines import ready_settings
from outbox_pipeline.cli.support.output import AsJson, copy_to_terminal, print_rows
from outbox_pipeline.cli.support.texts import in_utf8
from outbox_pipeline.errors import InDoubtError, OutboxError, PermanentError, UsageError, first_line

if TYPE_CHECKING:
    from outbox_pipeline.clickhouse.asked import Reply


_STDIN = "-"
#: What a table on the terminal is made of, by a name that hardly a statement has: one that has it is shown as it comes.
_FOR_TABLES = "TSVWithNamesAndTypes"
#: A name in the schema that the ledger has in PostgreSQL.
_OF_THE_LEDGER = re.compile(r"\boutbox\s*\.\s*\w", re.IGNORECASE)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "0": "\0"}


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sql")(sql)


def sql(
    query: Annotated[
        str, typer.Argument(help="One statement in ClickHouse's SQL; a dash reads it from stdin.", callback=in_utf8)
    ],
    as_json: AsJson = False,
    output_format: Annotated[
        Optional[str],  # noqa: UP045 - typer shows the bare type in its usage line
        typer.Option(
            "--format",
            help="Any output format of ClickHouse, such as CSVWithNames or Parquet.",
            metavar="NAME",
            callback=in_utf8,
        ),
    ] = None,
) -> None:
    """Have ClickHouse carry out a statement, sent as it is: SELECT, INSERT, DELETE, ALTER, CREATE or any other.

    Rows are a table on a terminal, each row by itself where they are wider than it; tab separated text otherwise, one
    object a line with --json. A FORMAT of the statement's own holds. Data of an INSERT stands behind its FORMAT, or
    comes from stdin. The tables of the schema outbox (events, batches, quarantine) are in PostgreSQL: ask psql.

    Example: `outbox sql 'SELECT event_type, count() FROM event_log GROUP BY event_type'`
    """
    if as_json and output_format:
        raise typer.BadParameter("give --json or --format, not both")
    statement, data = _statement(query)
    from outbox_pipeline.clickhouse.asked import asked, insert
    from outbox_pipeline.clickhouse.client import clickhouse_client

    asked_for = "JSONEachRow" if as_json else output_format
    as_table = asked_for is None and sys.stdout.isatty() and _FOR_TABLES not in statement
    default = _FOR_TABLES if as_table else asked_for or "TabSeparated"
    with (
        ready_settings(postgres=False) as settings,
        clickhouse_client(settings, under_profile=True) as client,
        _refused(statement),
    ):
        if data is not None:
            insert(client, statement, data)
            return
        with asked(client, statement, default_format=default, is_whole=as_table) as reply:
            _hand_over(reply, asked_for, as_table=as_table, as_json=as_json)


def _statement(query: str) -> tuple[str, bytes | None]:
    """Return the statement, and the data that go with it byte for byte; None for a statement without."""
    from outbox_pipeline.embedded.statements import read_statement

    text = sys.stdin.buffer.read() if query == _STDIN else query.encode()
    found = read_statement(text)
    begin = found.data_start if not found.is_select or found.inputs else None
    # ClickHouse puts the end of a line between the two.
    statement, data = (text, None) if begin is None else (text[:begin].rstrip(), text[begin:])
    if data is not None and not data.strip() and query != _STDIN:
        if sys.stdin.isatty():
            raise UsageError(
                "The INSERT has no data behind its FORMAT: write them there, or send a file with '< FILE'."
            )
        data = sys.stdin.buffer.read()
    try:
        return statement.decode(), data
    except UnicodeDecodeError:
        raise UsageError("The statement is not in UTF-8: write it in UTF-8, which ClickHouse keeps text in.") from None


def _hand_over(reply: "Reply", asked_for: str | None, *, as_table: bool, as_json: bool) -> None:
    if as_table and reply.format == _FOR_TABLES:
        _show(b"".join(reply.pieces).decode(errors="replace"))
        return
    pieces = _in_format(reply, asked_for, "--json" if as_json else "--format")
    if sys.stdout.isatty():
        copy_to_terminal(pieces, as_json=as_json)
        return
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _in_format(reply: "Reply", asked_for: str | None, option: str) -> Iterator[bytes]:
    for piece in reply.pieces:
        if asked_for is not None and reply.format not in (None, asked_for):
            raise UsageError(f"The statement names FORMAT {reply.format} of its own: leave out {option}.")
        yield piece


def _show(text: str) -> None:
    names, _types, *rows = [[_plain(cell) for cell in line.split("\t")] for line in text.removesuffix("\n").split("\n")]
    print_rows([name or "" for name in names], rows)


def _plain(cell: str) -> str | None:
    if cell == r"\N":
        return None
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[1]), cell)


@contextmanager
def _refused(statement: str) -> Iterator[None]:
    """Say of a refused statement only what ClickHouse says: it is the asker's own text, no matter of setup."""
    try:
        yield
    except UsageError:
        raise
    except InDoubtError as error:
        raise OutboxError(f"ClickHouse did not end the statement, and may have done a part of it: {error}") from error
    except PermanentError as error:
        said = f"ClickHouse refuses the statement: {first_line(error)}"
        if _OF_THE_LEDGER.search(statement):
            said += "\n'outbox sql' asks ClickHouse, and the tables of the schema outbox are in PostgreSQL: ask psql."
        raise OutboxError(said) from error
