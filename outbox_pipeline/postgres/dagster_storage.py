"""Dagster's own tables: how they are reached, and what they say, asked without Dagster.

Importing it takes two seconds, a query a few milliseconds. Invariant: nothing here changes anything, and of Dagster's
tables only what it has kept for years is read: names, states and times.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.errors import Server, primary_message, translated_of
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.session import ENCODING, PATIENCE
from outbox_pipeline.postgres.sqlstates import state_of
from outbox_pipeline.server_urls import named_driver
from outbox_pipeline.settings import shown_url

#: Names of UTC; a server's default is often one of them.
_ZONES = ("UTC", "Etc/UTC", "GMT", "Etc/GMT", "Universal", "Zulu", "UCT", "Etc/UCT")

_SHOWN = text("SELECT name, current_setting(name) AS value FROM unnest(CAST(:names AS text[])) AS name ORDER BY name")
#: Of Dagster's tables one for each part of its storage, and what is read here.
_TABLES = ("daemon_heartbeats", "event_logs", "instigators", "job_ticks", "runs")
_MISSING = text("SELECT name FROM unnest(CAST(:names AS text[])) AS name WHERE to_regclass(name) IS NULL ORDER BY name")
#: Where Dagster's tables go, whether they may, and which role can allow it: schema public is the database owner's.
_ROOM = text(
    "SELECT coalesce(has_schema_privilege(schema.oid, 'CREATE'), false) AS may_create,"
    " quote_ident(schema.nspname) AS schema_name, quote_ident(current_user) AS role_name, quote_ident(pg_get_userbyid("
    "CASE pg_get_userbyid(schema.nspowner) WHEN 'pg_database_owner' THEN datdba ELSE schema.nspowner END)) AS owner"
    " FROM pg_database LEFT JOIN pg_namespace AS schema ON schema.nspname = current_schema()"
    " WHERE datname = current_database()"
)

#: What Dagster takes for granted of its sessions: it commits each statement by itself, writes times without their zone,
#: and may build an index over all its history. Written as libpq's options are, a space with a backslash.
_SESSION = {
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "extra_float_digits": "1",
    "quote_all_identifiers": "off",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read\\ committed",
    "statement_timeout": "10min",
    "lock_timeout": "1min",
}

#: A failed connect has no state; these are the words of PgBouncer, and of Amazon's proxy.
_NO_OPTIONS = ("unsupported startup parameter", "command-line options")


def storage_url(url: str, *, options: bool = True) -> str:
    """Return the URL of Dagster's storage with what its sessions need: encoding, patience, and *options*.

    Poolers refuse options, whose settings would stay with the next user of a session.
    """
    # Dagster reads its URL from the environment by itself, where it may name no driver.
    parts = make_url(named_driver(url, "psycopg2"))
    given = {name: value for name, value in PATIENCE.items() if name not in parts.query and name != "application_name"}
    needed = {name: str(value) for name, value in (given | ENCODING).items()}
    if options:
        ours = [f"-c {name}={value}" for name, value in _SESSION.items()]
        # The last one counts, so what the URL says goes before ours, and ours before the environment.
        every = [os.environ.get("PGOPTIONS", ""), *ours, str(parts.query.get("options", ""))]
        needed["options"] = " ".join(every).strip()
    return parts.update_query_dict(needed).render_as_string(hide_password=False)


def refuses_options(error: BaseException) -> bool:
    """Tell whether a pooler refused a connection because of its options."""
    return any(words in str(error) for words in _NO_OPTIONS)


def is_missing_table(error: BaseException | None) -> bool:
    """Tell whether a statement failed because a table of Dagster's is not there."""
    return state_of(error) == "42P01"


def storage_server(url: str) -> Server:
    """Return the server of Dagster's storage, for sentences about it."""
    return Server(shown_url(url), "OUTBOX_DAGSTER_URL")


@contextmanager
def storage_connection(url: str) -> Iterator[Connection]:
    """Open one connection to Dagster's storage as Dagster's processes have it, with the driver the URL names."""
    try:
        connection = _engine(storage_url(url)).connect()
    except DBAPIError as error:
        if not refuses_options(error):
            raise
        connection = _engine(storage_url(url, options=False)).connect()
    with connection:
        yield connection


def _engine(url: str) -> Engine:
    # Each statement by itself, as Dagster asks: nothing here needs two that belong together.
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", hide_parameters=True)


@dataclass(frozen=True)
class DagsterState:
    """Daemon, sensors and queue as of now; ages in seconds.

    `heartbeat_ages`: by the kind of daemon. `sensors`: the state of each sensor and schedule beside outbox_sensor, once
    it was switched or has ticked. `last_ticks`: how the latest tick of each ended. `outbox_tick_age`: None when
    outbox_sensor has not ticked yet. `working_count`: runs that are started or about to be.
    """

    heartbeat_ages: dict[str, float]
    sensors: dict[str, str]
    last_ticks: dict[str, str]
    outbox_tick_age: float | None
    queued_count: int
    queued_seconds: float
    working_count: int
    oldest_run_id: str | None
    oldest_run_seconds: float


def read_dagster_state(url: str) -> DagsterState | None:
    """Read the state with the driver the URL names; None when Dagster has not used this database yet.

    Raises TransientError when it cannot be reached, ConfigurationError when its tables are not as they were, some of
    them are missing, or all are and may not be created, and what any other answer means.
    """
    with translated_of(storage_server(url)):
        try:
            with storage_connection(url) as connection:
                require_room(connection)
                missing = _missing(connection)
                if len(missing) == len(_TABLES):
                    return None
                _require_whole(missing, url)
                return _read(connection)
        except DBAPIError as error:
            if not _is_other_schema(error):
                raise
            raise ConfigurationError(
                f"Dagster's tables at {shown_url(url)} are not as this version knows them: run 'dagster instance "
                f"migrate'. PostgreSQL said: {primary_message(error.orig or error)}"
            ) from None


def read_storage_settings(url: str) -> dict[str, str]:
    """Return what a session of Dagster's storage shows and Dagster does not expect, by name.

    Only where a pooler keeps Dagster from setting it. Raises TransientError when the storage cannot be reached, and
    what any other answer means.
    """
    with translated_of(storage_server(url)), storage_connection(url) as connection:
        rows = connection.execute(_SHOWN, {"names": list(_SESSION)}).all()
    return {row.name: row.value for row in rows if not _fits(row.name, row.value)}


def _fits(name: str, shown: str) -> bool:
    if name.endswith("_timeout"):
        return shown == "0" or not shown.endswith("ms")
    if name == "TimeZone":
        return shown in _ZONES
    return shown.startswith(_SESSION[name].replace("\\", ""))


def require_storage(url: str) -> None:
    """Connect once to the database of Dagster's storage, with the driver its URL names.

    Raises TransientError saying why that did not work, ConfigurationError when Dagster could not create its tables, and
    what any other answer means.
    """
    with translated_of(storage_server(url)), storage_connection(url) as connection:
        require_room(connection)


def require_room(connection: Connection) -> None:
    """Raise ConfigurationError naming the GRANT where Dagster has no tables yet and may not create them."""
    room = connection.execute(_ROOM).one()
    if room.may_create or len(_missing(connection)) < len(_TABLES):
        return
    where = "Dagster may not create its tables in the database of OUTBOX_DAGSTER_URL"
    if room.schema_name is None:
        raise ConfigurationError(f"{where}: create a schema that is on the search_path of {room.role_name}.")
    raise ConfigurationError(
        f"{where}: GRANT CREATE ON SCHEMA {room.schema_name} TO {room.role_name}; as {room.owner}."
    )


def _missing(connection: Connection) -> list[str]:
    return list(connection.execute(_MISSING, {"names": list(_TABLES)}).scalars())


def _require_whole(missing: Collection[str], url: str) -> None:
    if missing:
        raise ConfigurationError(
            f"Dagster's storage at {shown_url(url)} lacks {', '.join(missing)} of its tables, which Dagster makes only "
            "where it finds none: restore them from a backup, or empty that schema, so that the next process of "
            "Dagster makes all of them."
        )


def _read(connection: Connection) -> DagsterState:
    return DagsterState(**connection.execute(query("dagster_state")).mappings().one())


def _is_other_schema(error: DBAPIError) -> bool:
    # Class 42 is a missing table or column, 22 a body that is no JSON.
    return state_of(error.orig).startswith(("42", "22"))
