"""Sort what PostgreSQL and its driver raise, by SQLSTATE, into the kinds this package acts on.

Invariant: what PostgreSQL says is shown only where it cannot quote a row: DETAIL and CONTEXT never.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from outbox_pipeline.errors import (
    ConfigurationError,
    ConstraintError,
    LedgerError,
    OutboxError,
    TransientError,
    first_line,
    without_secrets,
)
from outbox_pipeline.settings import shown_url

_TRANSIENT_STATES = (
    "08",
    "53",
    "57",
    "40",
    "55P03",
    "25P03",
)  # connection, resources, shutdown or timeout, rollback, lock timeout, idle timeout
_CONFIGURATION_STATES = (
    "28",
    "3D",
    "42",
    "3F",
)  # authentication, unknown database, missing object or grant, schema
#: A constraint or a trigger of the schema: the first message names it, values stand in the DETAIL.
_TELLING_STATES = ("23", "P0001")


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Translate what psycopg raises inside the block into this package's errors."""
    try:
        yield
    except OutboxError:
        raise
    except DBAPIError as error:
        # Not even as a cause: Dagster stores the whole chain, and the driver's DETAIL quotes rows.
        raise translate(error, engine) from None


def translate(error: DBAPIError, engine: Engine) -> OutboxError:
    """Sort a database error by its SQLSTATE; what only a defect or a constraint can cause is a LedgerError."""
    state = getattr(error.orig, "sqlstate", None) or ""
    said = primary_message(error.orig or error)
    where = f"PostgreSQL at {shown_url(engine.url.render_as_string())}"
    if state.startswith(_CONFIGURATION_STATES) or "password authentication failed" in said:
        return ConfigurationError(f"{where} refuses this: {said}. Check the URL and grants, then run 'outbox init'.")
    if state.startswith(_TRANSIENT_STATES) or isinstance(error.orig, psycopg.errors.LockNotAvailable):
        return TransientError(f"{where} cannot do this now: {said}")
    if isinstance(error, OperationalError | InterfaceError):
        return _unreachable(where, said)
    return _refused(error, where, state, said)


def primary_message(error: BaseException) -> str:
    """Return what the server says of an error without DETAIL and CONTEXT, which quote rows and values."""
    diagnosis = getattr(error, "diag", None)
    return without_secrets(getattr(diagnosis, "message_primary", None) or "") or first_line(error)


def _refused(error: DBAPIError, where: str, state: str, said: str) -> LedgerError:
    name = type(error.orig or error).__name__
    if state.startswith(_TELLING_STATES):
        return ConstraintError(f"{where} refuses this: {said} ({name}, SQLSTATE {state}). Nothing was written.")
    return LedgerError(
        f"{where} refuses this: {name}{f', SQLSTATE {state}' if state else ''}. The rest may quote events and is left "
        "out: PostgreSQL's own log has it. Nothing was written."
    )


def _unreachable(where: str, said: str) -> OutboxError:
    # A failed connect carries no SQLSTATE in libpq; these words are the server's own.
    if any(words in said for words in ("does not exist", "no password supplied", "certificate", "SSL was required")):
        return ConfigurationError(f"{where} refuses this: {said}. Check OUTBOX_POSTGRES_URL.")
    return TransientError(f"{where} cannot be reached: check that it runs and OUTBOX_POSTGRES_URL. It said: {said}")
