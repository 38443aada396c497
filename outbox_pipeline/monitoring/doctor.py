"""Check everything a delivery needs, and say of each thing what is wrong and what to do.

Invariant: no check changes anything but for a row of known bytes, which goes into a table of its own; none shows a
secret, and none hides another: a check that cannot be made because an earlier one failed is reported as skipped.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import combinations

from sqlalchemy import Engine

from outbox_pipeline.clickhouse.client import EventLogClient, open_client
from outbox_pipeline.clickhouse.completeness import delivered_problem
from outbox_pipeline.clickhouse.known_bytes import known_bytes_problem
from outbox_pipeline.clickhouse.owner import holding, read_claims
from outbox_pipeline.clickhouse.schema import latest_version as latest_log_version
from outbox_pipeline.clickhouse.schema import read_log
from outbox_pipeline.clickhouse.sources import crowded_problem, serves_one
from outbox_pipeline.clickhouse.table import durability_problem, table_problem
from outbox_pipeline.clickhouse.versions import version_problem
from outbox_pipeline.counts import counted
from outbox_pipeline.errors import OutboxError, without_secrets
from outbox_pipeline.monitoring.check import Check, skipped
from outbox_pipeline.monitoring.doctor_dagster import DAGSTER_CHECKS, examine_dagster
from outbox_pipeline.monitoring.encryption import check_encryption
from outbox_pipeline.monitoring.status import read_status
from outbox_pipeline.postgres.conditions import ledger_problem, read_conditions, read_ledger_id
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.extract import require_types
from outbox_pipeline.postgres.overview import (
    is_pooled,
    read_future_days,
    read_grants,
    read_server,
    read_switched_off,
    read_vacuum_off,
)
from outbox_pipeline.postgres.schema import check_version, latest_version
from outbox_pipeline.registry import load_registry
from outbox_pipeline.relay.lost_log import log_problem
from outbox_pipeline.relay.owner import owner_problem
from outbox_pipeline.relay.witness import loss_problem, read_newest, require_known
from outbox_pipeline.settings import Settings, shown_url, today, unknown_variables
from outbox_pipeline.stores import Stores

#: Clocks further apart than this are worth a look: `recorded_at` decides an event's day, and lag is their difference.
MAX_SKEW = timedelta(seconds=5)

_OLDEST_POSTGRES = 15_00_00
_ANSWER_SECONDS = 5.0

#: Every check in the order it is made.
CHECKS = (
    "settings",
    "start date",
    "event models",
    "encryption",
    "postgres",
    "postgres encoding",
    "postgres durability",
    "postgres vacuum",
    "bulk read",
    "grants",
    "schema",
    "ledger",
    "future days",
    "clickhouse",
    "clickhouse table",
    "clickhouse owner",
    "clickhouse known bytes",
    "clickhouse witness",
    "clickhouse durability",
    "delivered days",
    "clocks",
    *DAGSTER_CHECKS,
)
_NEEDING_POSTGRES = CHECKS[CHECKS.index("postgres") + 1 : CHECKS.index("future days") + 1]
_NEEDING_CLICKHOUSE = CHECKS[CHECKS.index("clickhouse") + 1 : CHECKS.index("delivered days") + 1]


@dataclass(frozen=True)
class ServerClock:
    """How far a server's clock is ahead of this host's, and how exactly that is known."""

    name: str
    ahead: timedelta
    uncertainty: timedelta


def examine(settings: Settings) -> list[Check]:
    """Make every check; a failed connection skips what needs it."""
    clocks: list[ServerClock] = []
    checks = [check_variables(os.environ), check_start_date(settings), check_event_models(settings)]
    checks.append(check_encryption(settings, os.environ))
    checks += _postgres_checks(settings, clocks)
    has_ledger = any(check.name == "schema" and check.ok for check in checks)
    checks += _clickhouse_checks(settings, clocks, has_ledger=has_ledger)
    checks.append(check_clocks(clocks))
    return checks + examine_dagster(settings, os.environ)


def unusable(error: OutboxError) -> list[Check]:
    """Return the report for settings that cannot even be read, or engines that do not start."""
    return [Check("settings", False, _said(error)), *skipped(CHECKS[1:], "settings")]


def check_variables(environment: Mapping[str, str]) -> Check:
    """Find variables that are no settings: a misspelt one would silently leave its setting at the default."""
    unknown = unknown_variables(environment)
    misspelt = [f"{name} is no setting: {meant} is" for name, meant in unknown.items() if meant is not None]
    if misspelt:
        return Check("settings", False, f"{'; '.join(misspelt)}. Rename it, or unset it.")
    ignored = f" No settings, so ignored: {', '.join(unknown)}." if unknown else ""
    return Check("settings", True, f"The settings are valid.{ignored}")


def check_start_date(settings: Settings) -> Check:
    """Find a first partition in the future: until then every event would be without a Dagster partition."""
    first, now = settings.start_date, today()
    if first > now:
        said = f"OUTBOX_START_DATE is {first}, after today ({now} UTC), so no day has a partition: set an earlier day."
        return Check("start date", False, said)
    return Check("start date", True, f"Dagster's partitions start on {first}.")


def check_event_models(settings: Settings) -> Check:
    """Find modules and models that would stop every delivery at its validation."""
    if not settings.event_modules:
        return Check("event models", True, "OUTBOX_EVENT_MODULES is not set: no context is validated with a model.")
    return _outcome("event models", lambda: _said_of_models(settings.event_modules or ()))


def _said_of_models(modules: tuple[str, ...]) -> str:
    registry = load_registry(modules)
    return f"{len(registry.models)} models of {len(registry.versions)} event types are registered."


def check_clocks(clocks: list[ServerClock]) -> Check:
    """Find the two clocks furthest apart, this host's among them."""
    if not clocks:
        return Check("clocks", None, "Skipped: no server answered.")
    here = ServerClock("this host", timedelta(), timedelta())
    apart = [(abs(one.ahead - other.ahead), one, other) for one, other in combinations([here, *clocks], 2)]
    skew, one, other = max(apart, key=lambda pair: pair[0])
    said = f"{one.name} and {other.name} are {skew.total_seconds():.1f} s apart"
    if skew - one.uncertainty - other.uncertainty > MAX_SKEW:
        return Check("clocks", False, f"The clocks of {said}: let NTP set them, or lag and days will be wrong.")
    return Check("clocks", True, f"The clocks agree; {said}.")


def _postgres_checks(settings: Settings, clocks: list[ServerClock]) -> Iterator[Check]:
    try:
        engine = create_outbox_engine(settings, pooled=False)
        version, encoding, way = _read_postgres(engine, clocks)
    except OutboxError as error:
        yield Check("postgres", False, _said(error))
        yield from skipped(_NEEDING_POSTGRES, "postgres")
        return
    yield check_postgres_version(version, f"{shown_url(settings.postgres_url)}{way}")
    yield check_encoding(encoding)
    yield _outcome("postgres durability", lambda: _check_postgres_durability(engine))
    yield _outcome("postgres vacuum", lambda: _check_vacuum(engine))
    yield _outcome("bulk read", lambda: _check_bulk_read(engine))
    grants = _outcome("grants", lambda: _check_grants(engine))
    yield grants
    schema = _check_schema(engine)
    if not schema.ok and not grants.ok:
        yield from skipped(["schema", "ledger", "future days"], "grants")
        return
    yield schema
    if schema.ok:
        yield _outcome("ledger", lambda: _check_ledger(engine))
        yield _check_future(engine)
    else:
        yield from skipped(["ledger", "future days"], "schema")


def _read_postgres(engine: Engine, clocks: list[ServerClock]) -> tuple[int, str, str]:
    with ledger_transaction(engine) as connection:
        before = datetime.now(UTC)
        version, encoding, at = read_server(connection)
        clocks.append(_clock("PostgreSQL", before, at))
        way = ", through a pooler," if is_pooled(connection) else ""
    return version, encoding, way


def check_postgres_version(version: int, shown: str) -> Check:
    """Find a server too old for the ledger's multiranges."""
    name = f"PostgreSQL {version // 10_000}.{version % 10_000} at {shown}"
    if version < _OLDEST_POSTGRES:
        return Check("postgres", False, f"{name} is too old: the ledger needs version 15 or later.")
    return Check("postgres", True, f"{name} answers.")


def check_encoding(encoding: str) -> Check:
    """Warn of a database whose text is not UTF-8: what it has no character for cannot be published."""
    if encoding != "UTF8":
        said = (
            f"The database's encoding is {encoding}: events arrive in UTF-8, but one with a character that {encoding} "
            "lacks is refused when it is published. ENCODING 'UTF8' has them all."
        )
        return Check("postgres encoding", True, said, is_warning=True)
    return Check("postgres encoding", True, "The database's encoding is UTF8.")


def _check_postgres_durability(engine: Engine) -> str:
    with ledger_transaction(engine) as connection:
        off = read_switched_off(connection, ["fsync", "full_page_writes"])
    problem = f"PostgreSQL runs with {' and '.join(off)} off: a power failure can lose committed events. Turn it on."
    return _fine(problem if off else None, "PostgreSQL writes what is committed to disk.")


def _check_vacuum(engine: Engine) -> str:
    with ledger_transaction(engine) as connection:
        off = read_vacuum_off(connection)
    remedies = " ".join(
        f"ALTER SYSTEM SET {name.removesuffix(' = off')} = on; as a superuser, and reload."
        if name.endswith(" = off")
        else f"ALTER TABLE {name} RESET (autovacuum_enabled); as its owner."
        for name in off
    )
    problem = f"Autovacuum is off: deleted events leave no room for new ones and plans grow bad. {remedies}"
    return _fine(problem if off else None, "Autovacuum works on the server and on the outbox's tables.")


def _check_bulk_read(engine: Engine) -> str:
    require_types(engine)
    return "The driver that reads batches knows PostgreSQL's types."


def _check_grants(engine: Engine) -> str:
    with ledger_transaction(engine) as connection:
        grants = read_grants(connection)
    if not grants["schema_exists"]:
        return "There is no outbox schema yet, so nothing to be granted."
    return _fine(grants_problem(**grants), f"Role {grants['role_name']} may do what delivery needs.")


def grants_problem(*, role_name: str, missing: list[str], remedies: list[str], schema_exists: bool) -> str | None:
    """Return the sentence for a role that lacks rights, None when it may do what delivery needs.

    All names come quoted where SQL needs it.
    """
    if not missing or not schema_exists:
        return None
    said = f"Role {role_name} may not do what delivery needs ({', '.join(missing)}): {', then '.join(remedies)}."
    return f"{said} Only the role that delivers needs them."


def _check_schema(engine: Engine) -> Check:
    try:
        with ledger_transaction(engine) as connection:
            found, own = check_version(connection), latest_version()
    except OutboxError as error:
        return Check("schema", False, _said(error))
    if found != own:
        return _newer_by_one("schema", "The outbox schema", found, own)
    return Check("schema", True, "The outbox schema has this code's version.")


def _newer_by_one(name: str, what: str, found: str, own: str) -> Check:
    said = (
        f"{what} has version {found}, one newer than this code's {own}: this code runs on it; update outbox-pipeline "
        "when you can."
    )
    return Check(name, True, said, is_warning=True)


def _check_ledger(engine: Engine) -> str:
    with ledger_transaction(engine) as connection:
        problem = ledger_problem(read_conditions(connection))
    return _fine(problem, "The ledger belongs to this cluster and its conditions hold.")


def _check_future(engine: Engine) -> Check:
    try:
        with ledger_transaction(engine) as connection:
            count, last_day = read_future_days(connection)
        status = read_status(engine)
    except OutboxError as error:
        return Check("future days", False, _said(error))
    if not count and not status.future:
        return Check("future days", True, "Nothing was recorded in the future.")
    days = f"{counted(count, 'batch', 'batches')} of days that have not come, up to {last_day}" if count else ""
    until = "" if status.future_until is None else f"{status.future_until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    events = f"{counted(status.future, 'undelivered event')} recorded up to {until}" if status.future else ""
    said = (
        f"{' and '.join(filter(None, [days, events]))}: PostgreSQL's clock was ahead, or is behind now. They are "
        "delivered like all others and keep their days; look at the clocks."
    )
    return Check("future days", True, said, is_warning=True)


def _clickhouse_checks(settings: Settings, clocks: list[ServerClock], *, has_ledger: bool) -> Iterator[Check]:
    try:
        client = open_client(settings, timeout_seconds=_ANSWER_SECONDS)
        version = _read_clickhouse(client, clocks)
    except OutboxError as error:
        yield Check("clickhouse", False, _said(error))
        yield from skipped(_NEEDING_CLICKHOUSE, "clickhouse")
        return
    try:
        yield check_clickhouse_version(version, shown_url(settings.clickhouse_url))
        table = _check_log(settings, client)
        yield table
        if table.ok and has_ledger:
            owner = _outcome("clickhouse owner", lambda: _check_owner(settings, client))
            yield owner
            yield _check_known_bytes(settings, client, owner)
            yield _outcome("clickhouse witness", lambda: _check_witness(settings, client))
        else:
            needed = "clickhouse table" if has_ledger else "schema"
            yield from skipped(["clickhouse owner", "clickhouse known bytes", "clickhouse witness"], needed)
        yield _outcome(
            "clickhouse durability",
            lambda: _fine(durability_problem(client), "ClickHouse writes what it has acknowledged to disk."),
        )
        yield _outcome(
            "delivered days",
            lambda: _fine(delivered_problem(client), f"Analysts read {client.names['delivered']}."),
        )
    finally:
        client.close()


def _check_log(settings: Settings, client: EventLogClient) -> Check:
    what, own = f"Table {client.table}", latest_log_version()
    try:
        _fine(_log_problem(settings, client), "")
        log = read_log(client)
        found = log.version or own
    except OutboxError as error:
        return Check("clickhouse table", False, _said(error))
    if found != own:
        return _newer_by_one("clickhouse table", what, found, own)
    key = "; its sorting key does not begin with source, so it can serve one outbox only" if serves_one(log) else ""
    return Check("clickhouse table", True, f"{what} has version {own} and the expected columns{key}.")


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
        return _fine(problem, f"Table {client.table} belongs to this outbox.")
    problem = problem or crowded_problem(client)
    return _fine(problem, f"Table {client.table} belongs to no outbox yet: it will to the first that delivers into it.")


def _check_known_bytes(settings: Settings, client: EventLogClient, owner: Check) -> Check:
    name = "clickhouse known bytes"
    if not owner.ok:
        return skipped([name], owner.name)[0]
    return _outcome(name, lambda: _said_of_known_bytes(settings, client))


def _said_of_known_bytes(settings: Settings, client: EventLogClient) -> str:
    if not holding(read_claims(client)):
        return f"No row was sent, since table {client.table} belongs to no outbox yet: the first delivery sends one."
    with ledger_transaction(create_outbox_engine(settings, pooled=False)) as connection:
        ledger_id = read_ledger_id(connection)
    problem = known_bytes_problem(client, ledger_id)
    return _fine(problem, "A row of known bytes, sent as events are, came back as it was sent.")


def _check_witness(settings: Settings, client: EventLogClient) -> str:
    stores = Stores(create_outbox_engine(settings, pooled=False), client, settings)
    cuts = read_newest(client)
    with ledger_transaction(stores.engine) as connection:
        require_known(connection, cuts)
    return _fine(loss_problem(stores), "ClickHouse has this ledger's deliveries on record, and no other instance's.")


def _read_clickhouse(client: EventLogClient, clocks: list[ServerClock]) -> str:
    before = datetime.now(UTC)
    row = client.rows("SELECT version() AS version, toUnixTimestamp64Micro(now64(6)) AS micros")[0]
    clocks.append(_clock("ClickHouse", before, datetime.fromtimestamp(row["micros"] / 1e6, UTC)))
    return str(row["version"])


def check_clickhouse_version(version: str, shown: str) -> Check:
    """Find a server older than what the load was tried on."""
    problem = version_problem(version, f"ClickHouse at {shown}")
    if problem is not None:
        return Check("clickhouse", False, problem)
    return Check("clickhouse", True, f"ClickHouse {version} at {shown} answers.")


def _clock(name: str, before: datetime, at: datetime) -> ServerClock:
    # The server read its clock somewhere between question and answer; take the middle.
    half = (datetime.now(UTC) - before) / 2
    return ServerClock(name, at - before - half, half)


def _outcome(name: str, make: Callable[[], str]) -> Check:
    try:
        return Check(name, True, make())
    except OutboxError as error:
        return Check(name, False, _said(error))


def _fine(problem: str | None, otherwise: str) -> str:
    if problem is not None:
        raise OutboxError(problem)
    return otherwise


def _said(error: OutboxError) -> str:
    return without_secrets(str(error))
