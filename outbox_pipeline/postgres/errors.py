"""Turn what PostgreSQL answers, and what its drivers raise by themselves, into the kinds this package acts on.

Invariant: what is raised here is one sentence and an OutboxError, whatever the driver raised. A server is called out of
reach only when none answered. What PostgreSQL says is shown only where it cannot quote a row: DETAIL and CONTEXT never.
"""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
    TimeoutError,
)

from outbox_pipeline.errors import (
    ConfigurationError,
    LedgerError,
    OutboxError,
    TransientError,
    first_line,
    sentence_of,
    without_secrets,
)
from outbox_pipeline.postgres.pooling import ADVICE, is_without_transactions
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.quoting import quoted_name
from outbox_pipeline.postgres.sqlstates import answered, standby, state_of
from outbox_pipeline.postgres.watchdog import PING_SECONDS, SilentError, allow
from outbox_pipeline.settings import shown_url

#: An error that comes out of one of these was raised by it, whatever its class.
_DRIVERS = ("sqlalchemy", "psycopg", "psycopg_binary", "psycopg_c", "psycopg2", "adbc_driver_manager", "pyarrow")
_PACKAGE = "outbox_pipeline"

#: What drivers raise, without a state, of a connection that broke or never was.
_BROKEN = (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError)
#: What they raise by themselves of a server whose settings, encoding or types they cannot read.
_UNREADABLE = (NotImplementedError, TypeError, UnicodeError)

#: Words of a failed connect, which carries no state in libpq, that waiting does not help against.
_REFUSALS = (
    "does not exist",
    "no password supplied",
    "password authentication failed",
    "authentication failed for user",
    "no pg_hba.conf entry",
    "is not permitted to log in",
    "permission denied for database",
    "certificate",
    "SSL was required",
)

#: Variables that change where a connection leads or how its session begins.
_VARIABLES = frozenset(
    [
        "PGCHANNELBINDING",
        "PGDATABASE",
        "PGDATESTYLE",
        "PGHOST",
        "PGHOSTADDR",
        "PGOPTIONS",
        "PGPASSFILE",
        "PGPORT",
        "PGREQUIREAUTH",
        "PGSERVICE",
        "PGSERVICEFILE",
        "PGSSLCERT",
        "PGSSLKEY",
        "PGSSLMODE",
        "PGSSLROOTCERT",
        "PGTARGETSESSIONATTRS",
        "PGTZ",
        "PGUSER",
    ]
)
#: Words of libpq where a server answered and is not what target_session_attrs asks for.
_OTHER_KIND = (
    "session is read-only",
    "session is not read-only",
    "server is in hot standby mode",
    "server is not in hot standby mode",
)

#: States behind which may be that the server is a standby, or that a policy hides rows: it is asked.
_ASKED_ABOUT = ("0A000", "25006", "42501", "55000")


@dataclass(frozen=True)
class Server:
    """Whom an error is about: *variable* is the setting that leads there, *engine* a way to ask it."""

    url: str
    variable: str = "OUTBOX_POSTGRES_URL"
    engine: Engine | None = None

    @property
    def where(self) -> str:
        """How a sentence begins that is about it."""
        return f"PostgreSQL at {self.url}"


def server_of(engine: Engine) -> Server:
    """Return the server behind an engine of the outbox."""
    return Server(shown_url(engine.url.render_as_string()), engine=engine)


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Translate what psycopg and SQLAlchemy raise inside the block into this package's errors."""
    with translated_of(server_of(engine)):
        yield


@contextmanager
def translated_of(server: Server) -> Iterator[None]:
    """Translate what drivers raise inside the block; an error of another origin passes as it is."""
    try:
        yield
    except OutboxError:
        raise
    except Exception as error:
        if not _is_of_a_driver(error):
            raise
        # Not even as a cause: Dagster stores the whole chain, and the driver's DETAIL quotes rows.
        raise translate(error, server) from None


def translate(error: Exception, server: Server) -> OutboxError:
    """Sort a driver's error: an answer by its SQLSTATE, anything else by what the driver makes of it."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    state, said = state_of(cause), primary_message(cause)
    if state:
        return answer_of(server, state, name=type(cause).__name__, said=said)
    if isinstance(cause, SilentError):
        return TransientError(f"{server.where} {said}")
    if isinstance(error, _BROKEN):
        return unreachable(server, said)
    return of_the_driver(server, error)


def answer_of(server: Server, state: str, *, name: str, said: str) -> OutboxError:
    """Return the error for an answer: *name* is the driver's for it, *said* the first message.

    What only the server can tell, that it is a standby or that policies hide rows, it is asked.
    """
    if is_without_transactions(said):
        return ConfigurationError(f"{server.where} cannot be used: {ADVICE}.")
    with suppress(KeyError):
        name = psycopg.errors.lookup(state).__name__
    explained = _explained(server, state)
    return explained or answered(server.where, state, name=name, said=said, variable=server.variable)


def primary_message(error: BaseException) -> str:
    """Return what the server says of an error without DETAIL and CONTEXT, which quote rows and values."""
    diagnosis = getattr(error, "diag", None)
    return without_secrets(getattr(diagnosis, "message_primary", None) or "") or first_line(error)


def unreachable(server: Server, said: str) -> OutboxError:
    """Return the error for a connection that broke or was not made; *said* are the words of libpq."""
    if any(words in said for words in _REFUSALS):
        return ConfigurationError(f"{server.where} refuses this: {said}. Check {server.variable}.")
    if any(words in said for words in _OTHER_KIND):
        return TransientError(
            f"{server.where} answers, but none of its hosts is of the kind that target_session_attrs in "
            f"{server.variable} asks for: {said}."
        )
    if "FATAL:" in said:
        return TransientError(f"{server.where} cannot do this now: {said}.{_from_the_environment()}")
    return TransientError(
        f"{server.where} cannot be reached: check that it runs and {server.variable}. It said: {said}"
        f"{_from_the_environment()}"
    )


def _from_the_environment() -> str:
    """Name the variables that libpq puts into every connection beside the URL; their values may be secrets."""
    found = sorted(name for name in os.environ if name in _VARIABLES)
    return f" {' and '.join(found)} of the environment are part of each connection: check them too." if found else ""


def of_the_driver(server: Server, error: Exception) -> OutboxError:
    """Return the error for what a driver raised by itself, for one over an answer it cannot read."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(error, ArgumentError):
        return ConfigurationError(f"{server.variable} leads to no database that a driver can read: check it.")
    if isinstance(error, TimeoutError):
        return TransientError(f"{server.where} has no free connection for this: {first_line(error)}")
    kind = ConfigurationError if isinstance(cause, _UNREADABLE) else LedgerError
    said = sentence_of(cause.with_traceback(error.__traceback__))
    return kind(f"{server.where} was reached and the driver cannot go on: {said}. Run 'outbox doctor'.")


def _is_of_a_driver(error: Exception) -> bool:
    if isinstance(error, SQLAlchemyError | psycopg.Error):
        return True
    modules = [
        str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    ours = [nth for nth, module in enumerate(modules) if module == _PACKAGE]
    return any(module in _DRIVERS for module in modules[ours[-1] if ours else 0 :])


def _explained(server: Server, state: str) -> OutboxError | None:
    """Return what is behind a refusal where the server itself tells: a policy, or that it is a standby."""
    if state not in _ASKED_ABOUT or server.engine is None:
        return None
    found = _asked(server.engine)
    if found is None:
        return None
    if found.is_standby:
        return standby(server.where, state, variable=server.variable)
    if state == "42501" and found.hidden_tables:
        return LedgerError(f"{server.where}: {hidden_sentence(found.role_name, found.hidden_tables)}")
    return None


def _asked(engine: Engine) -> Any:
    # Without BEGIN: a transaction of ours is refused for the same reason.
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            allow(connection, PING_SECONDS)
            return connection.execute(query("refusal")).one()
    except (SQLAlchemyError, *_UNREADABLE):
        return None


def hidden_sentence(role_name: str, tables: list[str]) -> str:
    """Say that policies may hide rows of *tables* from the role, and what to do about it."""
    named = " and ".join(f"outbox.{quoted_name(table)}" for table in tables)
    alter = "; ".join(f"ALTER TABLE outbox.{quoted_name(table)} DISABLE ROW LEVEL SECURITY" for table in tables)
    return (
        f"Row level security may hide rows of {named} from role {quoted_name(role_name)}, and what is hidden would be "
        f"taken for what never was, so nothing is cut, delivered, pruned or called complete: {alter}, or ALTER ROLE "
        f"{quoted_name(role_name)} BYPASSRLS."
    )
