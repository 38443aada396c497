"""The command `sql`: ask ClickHouse."""

import shutil
import sys
from typing import IO, TYPE_CHECKING, Annotated, Optional

import typer

from outbox_pipeline.cli.engines import ready_settings
from outbox_pipeline.cli.output import AsJson, print_table

if TYPE_CHECKING:
    from outbox_pipeline.clickhouse.client import EventLogClient


def add_to(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.command("sql")(sql)


def sql(
    query: Annotated[str, typer.Argument(help="A query in ClickHouse's SQL.")],
    as_json: AsJson = False,
    output_format: Annotated[
        Optional[str],  # noqa: UP045 - typer shows the bare type in its usage line
        typer.Option(
            "--format", help="Any output format of ClickHouse, such as CSVWithNames or Parquet.", metavar="NAME"
        ),
    ] = None,
) -> None:
    """Ask ClickHouse: a table on a terminal, tab separated text otherwise, one object a line with --json.

    Example: outbox sql 'SELECT event_type, count() FROM event_log GROUP BY event_type'
    """
    if as_json and output_format:
        raise typer.BadParameter("give --json or --format, not both")
    from outbox_pipeline.clickhouse.client import clickhouse_client

    wanted = "JSONEachRow" if as_json else output_format
    with ready_settings(postgres=False) as settings, clickhouse_client(settings) as client:
        if wanted is None and sys.stdout.isatty():
            _show(client, query)
        else:
            _copy(client, query, wanted or "TabSeparated", sys.stdout.buffer)


def _show(client: "EventLogClient", query: str) -> None:
    from outbox_pipeline.clickhouse.errors import translated

    with translated(client.where):
        result = client.driver.query(query)
    print_table(result.column_names, result.result_rows)


def _copy(client: "EventLogClient", query: str, output_format: str, out: IO[bytes]) -> None:
    from outbox_pipeline.clickhouse.errors import translated

    with translated(client.where), client.driver.raw_stream(query, fmt=output_format) as answer:
        shutil.copyfileobj(answer, out)
    out.flush()
