"""The command `sql`: ask ClickHouse."""

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from outbox_pipeline.cli.support.engines import ready_settings
from outbox_pipeline.cli.support.output import AsJson, copy_to_terminal, print_table
from outbox_pipeline.cli.support.texts import in_utf8
from outbox_pipeline.errors import OutboxError, PermanentError, first_line

if TYPE_CHECKING:
    from outbox_pipeline.clickhouse.client import EventLogClient


#: A name in the schema that the ledger has in PostgreSQL.
_OF_THE_LEDGER = re.compile(r"\boutbox\s*\.\s*\w", re.IGNORECASE)


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sql")(sql)


def sql(
    query: Annotated[str, typer.Argument(help="A query in ClickHouse's SQL.", callback=in_utf8)],
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
    """Ask ClickHouse: a table on a terminal, tab separated text otherwise, one object a line with --json.

    The tables of the schema outbox (events, batches, quarantine) are in PostgreSQL: ask psql for those.

    Example: `outbox sql 'SELECT event_type, count() FROM event_log GROUP BY event_type'`
    """
    if as_json and output_format:
        raise typer.BadParameter("give --json or --format, not both")
    from outbox_pipeline.clickhouse.client import clickhouse_client

    wanted = "JSONEachRow" if as_json else output_format
    with ready_settings(postgres=False) as settings, clickhouse_client(settings, under_profile=True) as client:
        if wanted is None and sys.stdout.isatty():
            _show(client, query)
        else:
            _copy(client, query, wanted or "TabSeparated", as_json=as_json)


def _show(client: "EventLogClient", query: str) -> None:
    with _refused(client, query):
        result = client.driver.query(query)
    print_table(result.column_names, result.result_rows)


def _copy(client: "EventLogClient", query: str, output_format: str, *, as_json: bool) -> None:
    with _refused(client, query), client.driver.raw_stream(query, fmt=output_format) as answer:
        if sys.stdout.isatty():
            copy_to_terminal(answer.read, as_json=as_json)
            return
        shutil.copyfileobj(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()


@contextmanager
def _refused(client: "EventLogClient", query: str) -> Iterator[None]:
    """Say of a refused query only what ClickHouse says: it is the asker's own text, no matter of setup."""
    from outbox_pipeline.clickhouse.errors import answered

    try:
        with answered(client.where):
            yield
    except PermanentError as error:
        said = f"ClickHouse refuses the query: {first_line(error)}"
        if _OF_THE_LEDGER.search(query):
            said += "\n'outbox sql' asks ClickHouse, and the tables of the schema outbox are in PostgreSQL: ask psql."
        raise OutboxError(said) from error
