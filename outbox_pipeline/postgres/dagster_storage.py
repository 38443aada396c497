"""What Dagster's own tables say, asked without Dagster: importing it takes two seconds, a query a few milliseconds.

Invariant: nothing here changes anything, and of Dagster's tables only what it has kept for years is read: names, states
and times.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from outbox_pipeline.errors import ConfigurationError, TransientError
from outbox_pipeline.postgres.errors import primary_message
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.session import CONNECT_TIMEOUT_SECONDS
from outbox_pipeline.settings import shown_url

_EXISTS = text(
    "SELECT to_regclass('daemon_heartbeats') IS NOT NULL AND to_regclass('instigators') IS NOT NULL"
    " AND to_regclass('job_ticks') IS NOT NULL AND to_regclass('runs') IS NOT NULL"
)


@dataclass(frozen=True)
class DagsterState:
    """Daemon, sensors and queue as of now; ages in seconds.

    `heartbeat_ages`: by the kind of daemon. `sensors`: the state of each sensor and schedule beside outbox_sensor, once
    somebody switched it or it ticked. `last_ticks`: how the latest tick of each ended. `outbox_tick_age`: None when
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

    Raises TransientError when it cannot be reached, ConfigurationError when its tables are not as they were.
    """
    timeout = {"connect_timeout": CONNECT_TIMEOUT_SECONDS}
    try:
        engine = create_engine(url, poolclass=NullPool, connect_args=timeout, hide_parameters=True)
        with engine.connect() as connection:
            return _read(connection) if connection.scalar(_EXISTS) else None
    except DBAPIError as error:
        if _is_other_schema(error):
            raise ConfigurationError(
                f"Dagster's tables at {shown_url(url)} are not as this version knows them: run 'dagster instance "
                f"migrate'. PostgreSQL said: {primary_message(error.orig or error)}"
            ) from None
        raise _unreachable(url, error) from None
    except SQLAlchemyError as error:
        raise _unreachable(url, error) from None


def _read(connection: Connection) -> DagsterState:
    return DagsterState(**connection.execute(query("dagster_state")).mappings().one())


def _is_other_schema(error: DBAPIError) -> bool:
    # psycopg2 calls it pgcode, psycopg sqlstate; class 42 is a missing table or column, 22 a body that is no JSON.
    state = getattr(error.orig, "pgcode", None) or getattr(error.orig, "sqlstate", None) or ""
    return str(state).startswith(("42", "22"))


def _unreachable(url: str, error: SQLAlchemyError) -> TransientError:
    said = primary_message(getattr(error, "orig", None) or error)
    return TransientError(f"PostgreSQL at {shown_url(url)} cannot be reached: {said}")
