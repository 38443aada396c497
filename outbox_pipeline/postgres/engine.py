"""Connections to PostgreSQL and the one way to open a ledger transaction.

Invariant: every ledger transaction is READ COMMITTED with synchronous commit and a lock timeout, whatever the role, the
database or the URL default to. Under REPEATABLE READ a late commit would be forgotten, and a commit that a crash can
take back would have delivered a batch that no longer exists.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from outbox_pipeline.errors import ConfigurationError, LedgerError
from outbox_pipeline.postgres.errors import translated
from outbox_pipeline.settings import Settings

#: Bounds a statement of the ledger; a sensor tick must fail cleanly long before Dagster gives it up at 60 s.
STATEMENT_TIMEOUT_SECONDS = 30
CONNECT_TIMEOUT_SECONDS = 5
#: Ends the session of a process that froze or lost its machine with the ledger's rows locked; else they stay locked
#: until the kernel gives the connection up, two hours by default.
IDLE_TIMEOUT_SECONDS = 30

#: A server that is gone is noticed in seconds, also in the middle of an answer.
_CONNECT_ARGUMENTS = {
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "application_name": "outbox-pipeline",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


def create_outbox_engine(settings: Settings, *, pooled: bool = True) -> Engine:
    """Return an engine on the outbox database.

    Raises ConfigurationError when OUTBOX_POSTGRES_URL is not set. Connects nowhere yet.
    """
    if settings.postgres_url is None:
        raise ConfigurationError(
            "OUTBOX_POSTGRES_URL is not set: set it, or start the embedded engines with 'outbox up'."
        )
    return create_engine(
        settings.postgres_url.get_secret_value(),
        isolation_level="READ COMMITTED",
        connect_args=_CONNECT_ARGUMENTS,
        hide_parameters=True,
        **({"pool_pre_ping": True, "pool_size": 4} if pooled else {"poolclass": NullPool}),
    )


def libpq_uri(engine: Engine) -> str:
    """Return the engine's URL for libpq clients such as ADBC. It holds the password: never show it."""
    url = make_url(engine.url).set(drivername="postgresql")
    patience = {name: str(value) for name, value in _CONNECT_ARGUMENTS.items()}
    return url.update_query_dict(patience).render_as_string(hide_password=False)


@contextmanager
def ledger_transaction(
    engine: Engine,
    *,
    lock_timeout_seconds: float = 5,
    idle_seconds: float = IDLE_TIMEOUT_SECONDS,
    statement_timeout_seconds: float = STATEMENT_TIMEOUT_SECONDS,
) -> Iterator[Connection]:
    """Open a transaction with what the ledger's correctness rests on, commit it at the end, translate what fails.

    Between its statements the block may be busy with other things for *idle_seconds*, 0 for as long as it likes; then
    the server ends the session and the transaction with it.

    Raises LedgerError when the server did not grant READ COMMITTED, TransientError or ConfigurationError as
    `translate` sorts them.
    """
    with translated(engine), engine.begin() as connection:
        guard = connection.execute(
            text(
                "SELECT set_config('synchronous_commit', 'on', true), set_config('lock_timeout', :lock, true),"
                " set_config('statement_timeout', :statement, true), set_config('TimeZone', 'UTC', true),"
                " set_config('idle_in_transaction_session_timeout', :idle, true),"
                # A cut sorts up to a million positions; compiling its plan takes longer than running it.
                " set_config('work_mem', '64MB', true), set_config('jit', 'off', true),"
                " current_setting('transaction_isolation') AS isolation"
            ),
            {
                "lock": f"{lock_timeout_seconds * 1000:.0f}ms",
                "statement": f"{statement_timeout_seconds * 1000:.0f}ms",
                "idle": f"{idle_seconds * 1000:.0f}ms",
            },
        ).one()
        if guard.isolation != "read committed":
            raise LedgerError(
                f"A ledger transaction runs as {guard.isolation.upper()}: events that commit late would be lost. "
                "Open the engine with create_outbox_engine()."
            )
        yield connection
