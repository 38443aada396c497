"""Tell a log that was not made yet from one that this ledger has delivered into and ClickHouse no longer has.

Invariant: the second is never made by itself, since nothing would then say that what was delivered is gone, and a
setting that names another place would go unnoticed. `operations.log` makes it on demand.
"""

from sqlalchemy import Engine

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.grants import hidden_problem
from outbox_pipeline.clickhouse.schema import has_log, read_log, version_problem
from outbox_pipeline.clickhouse.table import (
    absence,
    missing_problem,
    missing_sentence,
    table_problem,
    unseen_problem,
)
from outbox_pipeline.clickhouse.versions import require_version
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.reconcile import has_delivered
from outbox_pipeline.postgres.schema import schema_version


def require_log(engine: Engine, client: EventLogClient) -> None:
    """Raise ConfigurationError when the server is too old, or the log lost, missing or not as a delivery needs it."""
    require_version(client)
    problem = log_problem(engine, client)
    if problem is not None:
        raise ConfigurationError(problem)


def require_log_version(engine: Engine, client: EventLogClient) -> None:
    """Raise ConfigurationError when the server is too old, or the log lost, missing or of another version.

    Two small requests, for a tick.
    """
    require_version(client)
    found = read_log(client)
    if "table" not in found.tables:
        raise ConfigurationError(lost_sentence(client) if is_lost(engine, client) else missing_sentence(client))
    problem = unseen_problem(client, found) or version_problem(client, found) or missing_problem(client, found)
    if problem is not None:
        raise ConfigurationError(problem)


def log_problem(engine: Engine, client: EventLogClient) -> str | None:
    """Return in one sentence what keeps deliveries out of the log, None when nothing does."""
    problem = table_problem(client)
    return lost_sentence(client) if problem is not None and is_lost(engine, client) else problem


def is_lost(engine: Engine, client: EventLogClient) -> bool:
    """Tell whether ClickHouse has no log although this ledger has delivered events into one.

    One that the user may not see is not lost: nothing says that it is not there.
    """
    if has_log(client) or hidden_problem(client, ["table"]) is not None:
        return False
    with ledger_transaction(engine) as connection:
        return schema_version(connection) is not None and has_delivered(connection)


def lost_sentence(client: EventLogClient) -> str:
    """Say that the log is lost, or is elsewhere, and what to do in either case."""
    return (
        f"{absence(client)}, but this ledger has delivered events into one: correct OUTBOX_CLICKHOUSE_URL or "
        "OUTBOX_CLICKHOUSE_TABLE if they name another server, database or table, or, if the table is lost, make it "
        "again with 'outbox init --recreate-log'."
    )
