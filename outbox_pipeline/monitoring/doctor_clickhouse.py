"""The doctor's part about ClickHouse: the server, the log's tables, whose they are, and what is on record there.

Invariant: nothing is changed but for a row of known bytes, which goes into a table of its own; a check that cannot be
made because an earlier one failed is reported as skipped.
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

from outbox_pipeline.clickhouse.account import hidden_rows_problem, profile_problem
from outbox_pipeline.clickhouse.client import EventLogClient, clickhouse_client, open_client
from outbox_pipeline.clickhouse.completeness import delivered_problem
from outbox_pipeline.clickhouse.grants import grants_problem
from outbox_pipeline.clickhouse.known_bytes import known_bytes_problem
from outbox_pipeline.clickhouse.owner import holding, read_claims
from outbox_pipeline.clickhouse.schema import latest_version, read_log
from outbox_pipeline.clickhouse.sources import crowded_problem, key_sentence
from outbox_pipeline.clickhouse.table import durability_problem, projection_problem, table_problem
from outbox_pipeline.clickhouse.versions import old_server_problem
from outbox_pipeline.clickhouse.views import doubling_views
from outbox_pipeline.errors import ConfigurationError, OutboxError
from outbox_pipeline.monitoring.check import Check, fine, newer_by_one, outcome, skipped, told
from outbox_pipeline.monitoring.clocks import ServerClock, clock_of
from outbox_pipeline.postgres.conditions import read_ledger_id
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.relay.lost_log import log_problem
from outbox_pipeline.relay.owner import owner_problem
from outbox_pipeline.relay.servers import several_problem
from outbox_pipeline.relay.witness import loss_problem, read_newest, require_known
from outbox_pipeline.settings import Settings, shown_url
from outbox_pipeline.stores import Stores

#: Every check of this part, in the order it is made.
CLICKHOUSE_CHECKS = (
    "clickhouse",
    "clickhouse server",
    "clickhouse profile",
    "clickhouse grants",
    "clickhouse table",
    "clickhouse owner",
    "clickhouse known bytes",
    "clickhouse witness",
    "clickhouse durability",
    "clickhouse row policies",
    "clickhouse projections",
    "clickhouse views",
    "delivered days",
)

#: Those of what users and operators add to the log's tables.
_OF_TABLES = ("clickhouse row policies", "clickhouse projections", "clickhouse views")

_ANSWER_SECONDS = 5.0


def examine_clickhouse(settings: Settings, clocks: list[ServerClock], *, has_ledger: bool) -> Iterator[Check]:
    """Make every check of this part; a failed connection skips what needs it, and *clocks* gets the server's."""
    try:
        client = open_client(settings, timeout_seconds=_ANSWER_SECONDS)
        version = _read_clickhouse(client, clocks)
    except OutboxError as error:
        yield Check("clickhouse", False, _why_refused(settings, error))
        yield from skipped(CLICKHOUSE_CHECKS[1:], "clickhouse")
        return
    try:
        yield check_clickhouse_version(version, shown_url(settings.clickhouse_url))
        server = outcome("clickhouse server", lambda: fine(several_problem(client), "One server answers."))
        yield server
        if not server.ok:
            yield from skipped(CLICKHOUSE_CHECKS[2:], "clickhouse server")
            return
        yield outcome(
            "clickhouse profile",
            lambda: fine(profile_problem(client), "The user's profile in ClickHouse allows what our statements need."),
        )
        grants = outcome("clickhouse grants", lambda: _check_grants(client))
        yield grants
        table = _check_log(settings, client)
        if not table.ok and not grants.ok:
            yield from skipped(CLICKHOUSE_CHECKS[4:], "clickhouse grants")
            return
        yield table
        if table.ok and has_ledger:
            owner = outcome("clickhouse owner", lambda: _check_owner(settings, client))
            yield owner
            yield _check_known_bytes(settings, client, owner)
            yield outcome("clickhouse witness", lambda: _check_witness(settings, client))
        else:
            needed = "clickhouse table" if has_ledger else "schema"
            yield from skipped(["clickhouse owner", "clickhouse known bytes", "clickhouse witness"], needed)
        yield outcome(
            "clickhouse durability",
            lambda: fine(durability_problem(client), "ClickHouse writes what it has acknowledged to disk."),
        )
        yield from _check_tables(client) if table.ok else skipped(_OF_TABLES, "clickhouse table")
        yield outcome(
            "delivered days",
            lambda: fine(delivered_problem(client), f"Analysts read {client.names['delivered']}."),
        )
    finally:
        client.close()


def _check_grants(client: EventLogClient) -> str:
    return fine(grants_problem(client), "The user has every right that a delivery needs.")


def _why_refused(settings: Settings, error: OutboxError) -> str:
    """Say why no client could be opened; of all that a profile forbids ClickHouse names the first."""
    if isinstance(error, ConfigurationError):
        with suppress(OutboxError), clickhouse_client(settings, under_profile=True) as client:
            return profile_problem(client) or told(error)
    return told(error)


def _check_tables(client: EventLogClient) -> Iterator[Check]:
    policies, projections, views = _OF_TABLES
    yield outcome(policies, lambda: fine(hidden_rows_problem(client), "No row policy hides rows of the log's tables."))
    yield outcome(projections, lambda: fine(projection_problem(client), "No projection keeps rows from being deleted."))
    try:
        doubling = doubling_views(client)
    except OutboxError as error:
        yield Check(views, False, told(error))
        return
    said = f"No view behind table {client.table} doubles its rows when an insert is repeated."
    yield Check(views, True, doubling or said, is_warning=doubling is not None)


def _check_log(settings: Settings, client: EventLogClient) -> Check:
    what, own = f"Table {client.table}", latest_version()
    try:
        fine(_log_problem(settings, client), "")
        log = read_log(client)
        found = log.version or own
    except OutboxError as error:
        return Check("clickhouse table", False, told(error))
    if found != own:
        return newer_by_one("clickhouse table", what, found, own)
    key = key_sentence(client, log)
    return Check(
        "clickhouse table", True, " ".join(filter(None, [f"{what} has version {own} and the expected columns.", key]))
    )


def _log_problem(settings: Settings, client: EventLogClient) -> str | None:
    problem = table_problem(client)
    if problem is None:
        return None
    try:
        return log_problem(create_outbox_engine(settings, pooled=False), client)
    except OutboxError:
        # What keeps the ledger from answering is told by another check.
        return problem


def _check_owner(settings: Settings, client: EventLogClient) -> str:
    claims = read_claims(client)
    with ledger_transaction(create_outbox_engine(settings, pooled=False)) as connection:
        ledger_id = read_ledger_id(connection)
    problem = owner_problem(client.table, claims, ledger_id)
    if holding(claims):
        return fine(problem, f"Table {client.table} belongs to this outbox.")
    problem = problem or crowded_problem(client)
    return fine(problem, f"Table {client.table} belongs to no outbox yet: it will to the first that delivers into it.")


def _check_known_bytes(settings: Settings, client: EventLogClient, owner: Check) -> Check:
    name = "clickhouse known bytes"
    if not owner.ok:
        return skipped([name], owner.name)[0]
    return outcome(name, lambda: _said_of_known_bytes(settings, client))


def _said_of_known_bytes(settings: Settings, client: EventLogClient) -> str:
    if not holding(read_claims(client)):
        return f"No row was sent, since table {client.table} belongs to no outbox yet: the first delivery sends one."
    with ledger_transaction(create_outbox_engine(settings, pooled=False)) as connection:
        ledger_id = read_ledger_id(connection)
    problem = known_bytes_problem(client, ledger_id)
    return fine(problem, "A row of known bytes, sent as events are, came back as it was sent.")


def _check_witness(settings: Settings, client: EventLogClient) -> str:
    stores = Stores(create_outbox_engine(settings, pooled=False), client, settings)
    cuts = read_newest(client)
    with ledger_transaction(stores.engine) as connection:
        require_known(connection, cuts)
    return fine(loss_problem(stores), "ClickHouse has this ledger's deliveries on record, and no other instance's.")


def _read_clickhouse(client: EventLogClient, clocks: list[ServerClock]) -> str:
    before = datetime.now(UTC)
    row = client.rows("SELECT version() AS version, toUnixTimestamp64Micro(now64(6)) AS micros")[0]
    clocks.append(clock_of("ClickHouse", before, datetime.fromtimestamp(row["micros"] / 1e6, UTC)))
    return str(row["version"])


def check_clickhouse_version(version: str, shown: str) -> Check:
    """Find a server older than what the load was tried on."""
    problem = old_server_problem(version, f"ClickHouse at {shown}")
    if problem is not None:
        return Check("clickhouse", False, problem)
    return Check("clickhouse", True, f"ClickHouse {version} at {shown} answers.")
