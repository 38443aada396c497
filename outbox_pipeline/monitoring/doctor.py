"""Check everything a delivery needs, and say of each thing what is wrong and what to do.

Invariant: no check changes anything but for a row of known bytes, which goes into a table of its own; none shows a
secret, and none hides another: a check that cannot be made because an earlier one failed is reported as skipped.
"""

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from sqlalchemy import Engine

from outbox_pipeline.counts import counted
from outbox_pipeline.errors import OutboxError
from outbox_pipeline.monitoring.captures import CAPTURED_TABLES, check_captures
from outbox_pipeline.monitoring.check import Check, fine, newer_by_one, outcome, skipped, told
from outbox_pipeline.monitoring.clocks import ServerClock, check_clocks, clock_of
from outbox_pipeline.monitoring.doctor_celery import CELERY_CHECKS, examine_celery
from outbox_pipeline.monitoring.doctor_clickhouse import CLICKHOUSE_CHECKS, examine_clickhouse
from outbox_pipeline.monitoring.doctor_dagster import DAGSTER_CHECKS, examine_dagster
from outbox_pipeline.monitoring.encryption import check_encryption
from outbox_pipeline.monitoring.patience import in_time
from outbox_pipeline.monitoring.splits import SPLIT_BATCHES, check_splits
from outbox_pipeline.monitoring.status import read_status
from outbox_pipeline.postgres.conditions import ledger_problem, read_conditions
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
from outbox_pipeline.settings import Settings, shown_url, today, unknown_variables

_OLDEST_POSTGRES = 15_00_00

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
    SPLIT_BATCHES,
    CAPTURED_TABLES,
    *CLICKHOUSE_CHECKS,
    "clocks",
    *DAGSTER_CHECKS,
    *CELERY_CHECKS,
)
_NEEDING_POSTGRES = CHECKS[CHECKS.index("postgres") + 1 : CHECKS.index(CAPTURED_TABLES) + 1]
#: What needs a schema of this code's version, or the next one.
_NEEDING_SCHEMA = _NEEDING_POSTGRES[_NEEDING_POSTGRES.index("schema") + 1 :]


def examine(settings: Settings, failed: Mapping[str, str] | None = None) -> list[Check]:
    """Make every check that can be made; a server that does not answer skips what needs it, and nothing else.

    *failed*: why there is no server at all for `postgres` or `clickhouse`.
    """
    clocks: list[ServerClock] = []
    without = failed or {}
    checks = [check_variables(os.environ), check_start_date(settings), check_event_models(settings)]
    checks.append(check_encryption(settings, os.environ))
    if "postgres" in without:
        checks += [Check("postgres", False, without["postgres"]), *skipped(_NEEDING_POSTGRES, "postgres")]
    else:
        checks += in_time(_postgres_checks(settings, clocks), ("postgres", *_NEEDING_POSTGRES))
    has_ledger = any(check.name == "schema" and check.ok for check in checks)
    if "clickhouse" in without:
        checks += [Check("clickhouse", False, without["clickhouse"]), *skipped(CLICKHOUSE_CHECKS[1:], "clickhouse")]
    else:
        checks += in_time(examine_clickhouse(settings, clocks, has_ledger=has_ledger), CLICKHOUSE_CHECKS)
    checks.append(check_clocks(clocks))
    checks += in_time(examine_dagster(settings, os.environ, has_ledger=has_ledger), DAGSTER_CHECKS)
    return [*checks, *in_time(examine_celery(settings, os.environ), CELERY_CHECKS)]


def unusable(error: OutboxError) -> list[Check]:
    """Return the report for settings that cannot even be read, or engines that do not start."""
    names = [name for name in CHECKS[1:] if name not in CELERY_CHECKS]
    return [Check("settings", False, told(error)), *skipped(names, "settings")]


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
    said = f"No event counts for a day before {first}, or before the ledger's first, with which the partitions begin."
    return Check("start date", True, said)


def check_event_models(settings: Settings) -> Check:
    """Find modules and models that would stop every delivery at its validation."""
    if not settings.event_modules:
        return Check("event models", True, "OUTBOX_EVENT_MODULES is not set: no context is validated with a model.")
    return outcome("event models", lambda: _said_of_models(settings.event_modules or ()))


def _said_of_models(modules: tuple[str, ...]) -> str:
    registry = load_registry(modules)
    return f"Registered: {counted(len(registry.models), 'model')} of {counted(len(registry.versions), 'event type')}."


def _postgres_checks(settings: Settings, clocks: list[ServerClock]) -> Iterator[Check]:
    try:
        engine = create_outbox_engine(settings, pooled=False)
        version, encoding, way = _read_postgres(engine, clocks)
    except OutboxError as error:
        yield Check("postgres", False, told(error))
        yield from skipped(_NEEDING_POSTGRES, "postgres")
        return
    yield check_postgres_version(version, f"{shown_url(settings.postgres_url)}{way}")
    yield check_encoding(encoding)
    yield outcome("postgres durability", lambda: _check_postgres_durability(engine))
    yield outcome("postgres vacuum", lambda: _check_vacuum(engine))
    yield outcome("bulk read", lambda: _check_bulk_read(engine))
    grants = outcome("grants", lambda: _check_grants(engine))
    yield grants
    schema = _check_schema(engine)
    if not schema.ok and not grants.ok:
        yield from skipped(["schema", *_NEEDING_SCHEMA], "grants")
        return
    yield schema
    if schema.ok:
        yield outcome("ledger", lambda: _check_ledger(engine))
        yield _check_future(engine)
        yield check_splits(engine)
        yield check_captures(engine)
    else:
        yield from skipped(_NEEDING_SCHEMA, "schema")


def _read_postgres(engine: Engine, clocks: list[ServerClock]) -> tuple[int, str, str]:
    with ledger_transaction(engine) as connection:
        before = datetime.now(UTC)
        version, encoding, at = read_server(connection)
        clocks.append(clock_of("PostgreSQL", before, at))
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
    return fine(problem if off else None, "PostgreSQL writes what is committed to disk.")


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
    return fine(problem if off else None, "Autovacuum works on the server and on the outbox's tables.")


def _check_bulk_read(engine: Engine) -> str:
    require_types(engine)
    return "The driver that reads batches knows PostgreSQL's types."


def _check_grants(engine: Engine) -> str:
    with ledger_transaction(engine) as connection:
        grants = read_grants(connection)
    if not grants["schema_exists"]:
        return "There is no outbox schema yet, so nothing to be granted."
    return fine(grants_problem(**grants), f"Role {grants['role_name']} may do what delivery needs.")


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
        return Check("schema", False, told(error))
    if found != own:
        return newer_by_one("schema", "The outbox schema", found, own)
    return Check("schema", True, "The outbox schema has this code's version.")


def _check_ledger(engine: Engine) -> str:
    with ledger_transaction(engine) as connection:
        problem = ledger_problem(read_conditions(connection))
    return fine(problem, "The ledger belongs to this cluster and its conditions hold.")


def _check_future(engine: Engine) -> Check:
    try:
        with ledger_transaction(engine) as connection:
            count, last_day = read_future_days(connection)
        status = read_status(engine)
    except OutboxError as error:
        return Check("future days", False, told(error))
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
