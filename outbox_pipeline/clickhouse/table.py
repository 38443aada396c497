"""The event log table: create it, and refuse one that could not carry the guarantee."""

import re

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.grants import hidden_problem
from outbox_pipeline.clickhouse.merge_tree import setting_of
from outbox_pipeline.clickhouse.migrations.files import migrations
from outbox_pipeline.clickhouse.schema import LogState, migrate_log, read_log, version_problem
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

_STATEMENTS = """
SELECT name, create_table_query FROM system.tables
WHERE database = currentDatabase() AND name IN {names:Array(String)} ORDER BY name
"""
#: The tables from which rows are deleted.
_DELETED_FROM = ("table", "fence", "sources", "ledger", "completeness")
_PROJECTION_MODE = "lightweight_mutation_projection_mode"
_TEXT = re.compile(r"'(?:[^'\\]|\\.)*'")


def column_comments() -> dict[str, str]:
    """Return what each column of the event log means, in the words of its table."""
    statements = (statement for migration in migrations() for statement in migration.statements)
    text = "\n".join(statement.text for statement in statements if statement.role == "table")
    found = re.findall(r"^    (?:ADD COLUMN IF NOT EXISTS )?(\w+) .*?COMMENT '((?:[^']|\'\')*)'", text, re.MULTILINE)
    return {name: comment.replace("''", "'") for name, comment in found}


def create_table(client: EventLogClient) -> str:
    """Make the log's tables or bring them up to date, then check them; return their version.

    Safe to repeat and to run from several processes at once. It asks no ledger whether the log was there before:
    `operations.log` does, and is what commands call.
    """
    version = migrate_log(client)
    check_table(client)
    return version


def check_table(client: EventLogClient) -> None:
    """Raise ConfigurationError with one sentence when the table is missing or is not what `create_table` makes."""
    problem = table_problem(client)
    if problem is not None:
        raise ConfigurationError(problem)


def table_problem(client: EventLogClient) -> str | None:
    """Return what is wrong with the table in one sentence, None when all is well."""
    found = read_log(client)
    table = found.tables.get("table")
    if table is None:
        return missing_sentence(client)
    engine = table["engine"]
    if engine not in _ENGINES:
        return (
            f"Table {client.table} has engine {engine}: a replica's low count proves nothing, so only "
            f"{' and '.join(sorted(_ENGINES))} on one node are supported."
        )
    return (
        unseen_problem(client, found)
        or version_problem(client, found)
        or _column_problem(client)
        or _merge_problem(client, engine, table["sorting_key"])
        or _window_problem(client, table["create_table_query"])
        or missing_problem(client, found)
    )


def missing_sentence(client: EventLogClient) -> str:
    """Say that there is no log yet, and what makes it, or that the user may not see whether there is one."""
    return hidden_problem(client, ["table"]) or f"{absence(client)}: run 'outbox init'."


def absence(client: EventLogClient) -> str:
    """Say that there is no log."""
    return f"{client.where} has no table {client.table}"


def unseen_problem(client: EventLogClient, found: LogState) -> str | None:
    """Return in one sentence which table of a log that is there ClickHouse does not show to this user, None for none.

    Asks only where one is not to be seen.
    """
    unseen = [role for role in client.names if role not in found.tables]
    return hidden_problem(client, unseen) if unseen else None


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


def projection_problem(client: EventLogClient) -> str | None:
    """Return which projections make ClickHouse refuse the deletes of a repair or a prune, None when none do."""
    rows = client.rows(_STATEMENTS, {"names": [client.names[role] for role in _DELETED_FROM]})
    statements = {str(row["name"]): str(row["create_table_query"]) for row in rows}
    refusing = {name: found for name, each in statements.items() if (found := _refusing_projections(client, each))}
    if not refusing:
        return None
    named = " and ".join(f"{', '.join(found)} of {name}" for name, found in refusing.items())
    remedies = "; ".join(f"ALTER TABLE {name} MODIFY SETTING {_PROJECTION_MODE} = 'rebuild'" for name in refusing)
    return (
        f"ClickHouse refuses to delete rows of a table with a projection unless it is told what becomes of it, and so "
        f"each repair and prune, because of {named}: {remedies}."
    )


def _refusing_projections(client: EventLogClient, create_statement: str) -> list[str]:
    projections = re.findall(r"[(,] PROJECTION (`[^`]+`|\w+)", _TEXT.sub("''", create_statement))
    if not projections or setting_of(client, create_statement, _PROJECTION_MODE, usual="throw") != "throw":
        return []
    return [str(name) for name in projections]


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


def missing_problem(client: EventLogClient, found: LogState) -> str | None:
    """Return which table beside the log is not there, in one sentence; None when all are."""
    for role in ("fence", "sources", "ledger", "known_bytes"):
        if found.tables.get(role, {}).get("engine") != "MergeTree":
            return f"{client.where} has no table {client.names[role]}: run 'outbox init'."
    return None
