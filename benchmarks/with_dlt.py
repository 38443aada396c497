"""dlt (https://dlthub.com) reading the outbox's events into DuckDB, for `side_by_side`.

A run is dlt's three steps, extract to Parquet files, normalize, load, in this process and into a fresh DuckDB file: its
destination for ClickHouse speaks ClickHouse's native protocol too, which the embedded server does not. Both backends
read over PostgreSQL's Unix socket. What dlt is asked for is a range of positions; it marks nothing.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from urllib.parse import quote

from outbox_pipeline.stores import Stores

#: Said when this contender cannot take part; the dependency group `bench` in pyproject.toml names what it needs.
HOW_TO_INSTALL = "dlt is not measured, it is not installed: uv pip install --group bench."

#: dlt's two fast ways to read a table.
BACKENDS = ("connectorx", "pyarrow")


@dataclass(frozen=True)
class DltRun:
    """Seconds of the three steps, and how many different events DuckDB holds after them."""

    extract_seconds: float
    normalize_seconds: float
    load_seconds: float
    rows: int


def is_installed() -> bool:
    """Return whether all that this needs is there."""
    return all(find_spec(name) for name in ("dlt", "duckdb", "connectorx"))


def run_dlt(stores: Stores, backend: str, *, after: int, until: int) -> DltRun:
    """Copy the events of these positions into a fresh DuckDB file."""
    # Before the import: dlt would report to its makers.
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "ERROR"}
    import dlt

    with TemporaryDirectory(prefix="outbox-dlt-") as folder:
        file = Path(folder) / "events.duckdb"
        pipeline = dlt.pipeline(
            "outbox_bench", pipelines_dir=folder, destination=dlt.destinations.duckdb(str(file)), dataset_name="bench"
        )
        extract_seconds = _seconds(lambda: pipeline.extract(_table(stores, backend, after, until)))
        normalize_seconds = _seconds(pipeline.normalize)
        load_seconds = _seconds(pipeline.load)
        return DltRun(extract_seconds, normalize_seconds, load_seconds, _count(file))


def _seconds(step: Callable[[], object]) -> float:
    started = perf_counter()
    step()
    return perf_counter() - started


def _count(file: Path) -> int:
    import duckdb

    with duckdb.connect(str(file), read_only=True) as connection:
        row = connection.execute("SELECT count(*), count(DISTINCT event_id) FROM bench.event").fetchone()
    assert row is not None
    return int(row[1]) if row[0] == row[1] else -1


def _table(stores: Stores, backend: str, after: int, until: int) -> Any:
    from dlt.sources.sql_database import sql_table

    url = stores.engine.url
    # connectorx takes the socket's folder as the URL's host.
    folder = quote(str(url.query["host"]), safe="")
    connectorx = {"backend_kwargs": {"conn": f"postgresql://postgres@{folder}:5432/{url.database}"}}
    return sql_table(
        url.render_as_string(hide_password=False),
        table="event",
        schema="outbox",
        backend=backend,
        chunk_size=100_000,
        query_adapter_callback=lambda query, table: query.where(table.c.position > after, table.c.position <= until),
        **(connectorx if backend == "connectorx" else {}),
    )
