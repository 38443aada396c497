"""Create the log's tables and bring them up to date, and know whether they fit this code.

Invariant: a migration is on record only after its last statement was answered, and each statement can be repeated by
itself. So a process that is killed between two of them, or several processes at once, end in the same tables; the next
`migrate_log` goes on with what was begun. What is there takes no right to create, for which ClickHouse asks despite IF
NOT EXISTS.
"""

from dataclasses import dataclass
from typing import Any

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.migrations.files import Migration, Statement, as_statement, migrations
from outbox_pipeline.errors import ConfigurationError

_CREATE_RECORD = as_statement(
    """CREATE TABLE IF NOT EXISTS {migrations:Identifier} (
    version String COMMENT 'Number of the migration',
    name String COMMENT 'What it is called',
    applied_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC') COMMENT 'When its last statement was done'
) ENGINE = MergeTree
ORDER BY version"""
)

_RECORD = "INSERT INTO {migrations:Identifier} (version, name) VALUES ({version:String}, {name:String})"

_TABLES = """
SELECT name, engine, sorting_key, create_table_query FROM system.tables
WHERE database = currentDatabase() AND name IN {names:Array(String)}
"""


@dataclass(frozen=True)
class LogState:
    """What ClickHouse has of a log.

    `tables`: for each role (`EventLogClient.names`) that has a table, its engine, key and statement. `applied`: numbers
    on record. An older log, without a record, is what the first migration makes.
    """

    tables: dict[str, dict[str, Any]]
    applied: frozenset[str]

    @property
    def version(self) -> str | None:
        """The version the log has, None for none."""
        return max(self.applied, default=None)

    @property
    def unknown(self) -> list[str]:
        """Numbers on record that this code does not know and does not run on, in order."""
        return sorted(self.applied - {migration.version for migration in migrations()} - {versions_run_on()[1]})

    @property
    def pending(self) -> list[Migration]:
        """Migrations that are not on record, in order."""
        return [migration for migration in migrations() if migration.version not in self.applied]

    def is_missing(self, statement: Statement) -> bool:
        """Tell whether *statement* creates a table or view that is not there."""
        return statement.is_create and statement.role not in self.tables


def has_log(client: EventLogClient) -> bool:
    """Return whether the table itself is there."""
    table = "SELECT 1 FROM system.tables WHERE database = currentDatabase() AND name = {table:String}"
    return bool(client.rows(table))


def read_log(client: EventLogClient) -> LogState:
    """Return what there is of the log."""
    roles = {name: role for role, name in client.names.items()}
    rows = client.rows(_TABLES, {"names": list(roles)})
    tables = {roles[row["name"]]: row for row in rows}
    if "migrations" in tables:
        found = client.rows("SELECT DISTINCT version FROM {migrations:Identifier}")
        return LogState(tables, frozenset(str(row["version"]) for row in found))
    return LogState(tables, frozenset({migrations()[0].version} if "table" in tables else ()))


def migrate_log(client: EventLogClient) -> str:
    """Bring the log to this code's version, make again what of it is missing, and return the version it has then.

    The next release's version is left as it is. Safe to repeat and to run from several processes at once. Raises
    ConfigurationError when the log is newer than that, or lacks a table that only the next release makes whole, or
    when the user lacks a right.
    """
    found = read_log(client)
    is_next = found.version == versions_run_on()[1]
    if found.unknown or (is_next and _to_run(found)):
        raise ConfigurationError(_newer(client, found))
    if is_next:
        return str(found.version)
    if found.is_missing(_CREATE_RECORD):
        client.run(_CREATE_RECORD.rendered(client.names))
        # An older log is put on record as well.
        found = LogState(found.tables, frozenset())
    for migration in _to_run(found):
        for statement in migration.statements:
            if _is_due(found, statement):
                client.run(statement.rendered(client.names))
        if migration in found.pending:
            client.run(_RECORD, {"version": migration.version, "name": migration.name})
    return latest_version()


def _is_due(found: LogState, statement: Statement) -> bool:
    if statement.keeps:
        return found.is_missing(statement)
    # What has the name of a view and is none is the user's: nothing here drops it.
    return not statement.is_create or found.tables.get(statement.role, {}).get("engine", "View") == "View"


def _to_run(found: LogState) -> tuple[Migration, ...]:
    """Return the migrations from the first that is not whole: later ones change what it makes."""
    known = migrations()
    for number, migration in enumerate(known):
        if migration in found.pending or any(map(found.is_missing, migration.statements)):
            return known[number:]
    return ()


def latest_version() -> str:
    """Return the version this code needs: the number of its last migration."""
    return migrations()[-1].version


def versions_run_on() -> tuple[str, str]:
    """Return the two versions that this release runs on: that of its last migration, and the next, which only adds."""
    own = latest_version()
    return own, f"{int(own) + 1:04d}"


def version_problem(client: EventLogClient, found: LogState) -> str | None:
    """Return in one sentence why a log that is there has another version than this code's, None when it has not."""
    if found.unknown:
        return _newer(client, found)
    if not found.pending:
        return None
    first = found.pending[0]
    made = [each for each in first.statements if each.keeps and not found.is_missing(each)]
    if made or (found.version or "") > first.version:
        return (
            f"Migration {first.version}_{first.name} of table {client.table} is not on record as done: run "
            "'outbox init', which does what is left of it."
        )
    return (
        f"Table {client.table} has version {found.version}, this code needs {latest_version()}: run 'outbox init' to "
        "migrate it."
    )


def _newer(client: EventLogClient, found: LogState) -> str:
    return (
        f"Table {client.table} in {client.where} has version {found.version}, newer than this code "
        f"({latest_version()}): update outbox-pipeline."
    )
