"""The event log table: create it, and refuse one that could not carry the guarantee."""

import re

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.completeness import create_delivered
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.event_schema import EVENT_COLUMNS

#: How ClickHouse holds each kind of value.
_TYPES = {
    "name": "LowCardinality(String)",
    "text": "String",
    "json": "String",
    "number": "UInt64",
    "count": "UInt32",
    "uuid": "UUID",
    "time": "DateTime64(6, 'UTC')",
}

#: Column names and types in the table's order; the first five are what readers of an event log query.
COLUMNS = {column.name: _TYPES[column.kind] for column in EVENT_COLUMNS}

#: Inserts remembered per partition, so that a repeated one is dropped. A cheap path, never the proof.
DEDUPLICATION_WINDOW = 10_000

_ENGINES = frozenset({"MergeTree", "ReplacingMergeTree"})

_CREATE = f"""
CREATE TABLE IF NOT EXISTS {{table:Identifier}} (
    event_type LowCardinality(String) COMMENT 'What happened',
    event_date_time DateTime64(6, 'UTC') COMMENT 'When it happened, as the application said',
    environment LowCardinality(String) COMMENT 'Where it happened: production, staging, …',
    event_context String COMMENT 'The event itself: the JSON text exactly as published' CODEC(ZSTD(1)),
    metadata_version UInt64 COMMENT 'Version of the context''s shape',
    event_id UUID COMMENT 'Identity of the event',
    batch_id UUID COMMENT 'The batch that brought it' CODEC(ZSTD(1)),
    generation UInt32 COMMENT 'Which sending of that batch' CODEC(ZSTD(1)),
    position UInt64 COMMENT 'Position in the outbox' CODEC(Delta, ZSTD(1)),
    recorded_at DateTime64(6, 'UTC') COMMENT 'When PostgreSQL stored it' CODEC(Delta, ZSTD(1)),
    trace_context String COMMENT 'W3C trace context of the publisher, when there was one' CODEC(ZSTD(1)),
    loaded_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When this row was inserted here' CODEC(ZSTD(1)),
    INDEX position_range position TYPE minmax GRANULARITY 1
) ENGINE = MergeTree
PARTITION BY toYYYYMM(event_date_time)
ORDER BY (event_type, event_date_time, event_id)
SETTINGS non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}, fsync_after_insert = 1, fsync_part_directory = 1
"""

_CREATE_FENCE = """
CREATE TABLE IF NOT EXISTS {fence:Identifier} (
    batch_id UUID COMMENT 'The batch',
    attempt UInt32 COMMENT 'Inserts of lower attempts on this batch are refused from now on',
    fenced_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When this attempt began'
) ENGINE = MergeTree
ORDER BY batch_id
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
"""


def column_comments() -> dict[str, str]:
    """Return what each column of the event log means, in the words of its table."""
    found = re.findall(r"^    (\w+) .*?COMMENT '((?:[^']|\'\')*)'", _CREATE, re.MULTILINE)
    return {name: comment.replace("''", "'") for name, comment in found}


def create_table(client: EventLogClient) -> None:
    """Create the event log, its fence and the days' table where they are missing, then check the first two.

    Safe to repeat, and what is there takes no right to create: ClickHouse asks for it despite IF NOT EXISTS.
    """
    present = _present(client)
    for name, statement in (("table", _CREATE), ("fence", _CREATE_FENCE)):
        if client.names[name] not in present:
            client.run(statement)
    create_delivered(client, present)
    check_table(client)


def _present(client: EventLogClient) -> set[str]:
    rows = client.rows("SELECT name FROM system.tables WHERE database = currentDatabase()")
    return {str(row["name"]) for row in rows}


def check_table(client: EventLogClient) -> None:
    """Raise ConfigurationError with one sentence when the table is missing or is not what `create_table` makes."""
    problem = table_problem(client)
    if problem is not None:
        raise ConfigurationError(problem)


def table_problem(client: EventLogClient) -> str | None:
    """Return what is wrong with the table in one sentence, None when all is well."""
    tables = client.rows(
        "SELECT engine, sorting_key, create_table_query FROM system.tables"
        " WHERE database = currentDatabase() AND name = {table:String}"
    )
    if not tables:
        return f"{client.where} has no table {client.table}: run 'outbox init'."
    engine = tables[0]["engine"]
    if engine not in _ENGINES:
        return (
            f"Table {client.table} has engine {engine}: a replica's low count proves nothing, so only "
            f"{' and '.join(sorted(_ENGINES))} on one node are supported."
        )
    return (
        _column_problem(client)
        or _merge_problem(client, engine, tables[0]["sorting_key"])
        or _window_problem(client, tables[0]["create_table_query"])
        or _fence_problem(client)
    )


def durability_problem(client: EventLogClient) -> str | None:
    """Return what could be lost in a power failure after ClickHouse has acknowledged it, None when nothing."""
    tables = client.rows(
        "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = {table:String}"
    )
    wanted = ("fsync_after_insert = 1", "fsync_part_directory = 1")
    off = [setting for setting in wanted if tables and setting not in tables[0]["create_table_query"]]
    if not off:
        return None
    return (
        f"Table {client.table} does not write inserts to disk before answering, so a power failure can lose processed "
        f"events: ALTER TABLE {client.table} MODIFY SETTING {', '.join(off)}."
    )


def _column_problem(client: EventLogClient) -> str | None:
    rows = client.rows(
        "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {table:String}"
        " ORDER BY position"
    )
    found = {row["name"]: row["type"] for row in rows}
    for name, wanted in COLUMNS.items():
        if name not in found:
            return f"Table {client.table} lacks column {name} {wanted}: add it, or let 'outbox init' make a new table."
        if found[name] != wanted:
            return f"Table {client.table} has column {name} as {found[name]} instead of {wanted}: change it back."
    return None


def _window_problem(client: EventLogClient, create_statement: str) -> str | None:
    window = re.search(r"non_replicated_deduplication_window = (\d+)", create_statement)
    if window is not None and int(window[1]) > 0:
        return None
    return (
        f"Table {client.table} has no deduplication window: ALTER TABLE {client.table} MODIFY SETTING "
        f"non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}."
    )


def _merge_problem(client: EventLogClient, engine: str, sorting_key: str) -> str | None:
    if engine != "ReplacingMergeTree" or "event_id" in sorting_key.split(", "):
        return None
    return (
        f"Table {client.table} is a ReplacingMergeTree whose ORDER BY lacks event_id: merges would drop events that "
        "were processed. Make it a MergeTree, or end its ORDER BY with event_id."
    )


def _fence_problem(client: EventLogClient) -> str | None:
    found = client.rows(
        "SELECT 1 FROM system.tables"
        " WHERE database = currentDatabase() AND name = {fence:String} AND engine = 'MergeTree'"
    )
    return None if found else f"{client.where} has no table {client.names['fence']}: run 'outbox init'."
