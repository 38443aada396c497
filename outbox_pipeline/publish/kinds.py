"""Which kind of session a caller has, told by the names of its class.

Nothing is imported to find out: a library is imported by the module that speaks to it, once a call comes with one of
its sessions, and then it is loaded already.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from outbox_pipeline import published
from outbox_pipeline.events import EventRow
from outbox_pipeline.postgres import pooling
from outbox_pipeline.publish.steps import AsyncDriver, Driver, Options, write, write_async
from outbox_pipeline.published import Written

if TYPE_CHECKING:
    import asyncpg
    import psycopg
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    #: What `publish_event` writes through.
    SyncSession: TypeAlias = Session | scoped_session[Any] | Connection | psycopg.Connection[Any]

    #: What `publish_event_async` writes through.
    AsyncSessionKind: TypeAlias = (
        AsyncSession
        | async_scoped_session[Any]
        | AsyncConnection
        | psycopg.AsyncConnection[Any]
        | asyncpg.Connection
        | asyncpg.pool.PoolConnectionProxy
    )

#: Library and class; subclasses are of the same kind.
_SYNC = frozenset(
    {
        ("sqlalchemy", "Connection"),
        ("sqlalchemy", "Session"),
        ("sqlalchemy", "scoped_session"),
        ("psycopg", "Connection"),
    }
)
_ASYNC = frozenset(
    {
        ("sqlalchemy", "AsyncConnection"),
        ("sqlalchemy", "AsyncSession"),
        ("sqlalchemy", "async_scoped_session"),
        ("psycopg", "AsyncConnection"),
        ("asyncpg", "Connection"),
        ("asyncpg", "PoolConnectionProxy"),
    }
)


def is_sync_session(session: object) -> bool:
    """Tell whether `publish_event` takes *session*."""
    return _library_of(session, _SYNC) is not None


def is_async_session(session: object) -> bool:
    """Tell whether `publish_event_async` takes *session*."""
    return _library_of(session, _ASYNC) is not None


def write_through(
    session: Any, rows: Sequence[EventRow], options: Options, *, driver_of: Callable[[Any], Driver] | None = None
) -> Written | None:
    """Write *rows* through a session that is called; see `write`. Raises TypeError for any other kind.

    A framework that knows its connections by another word than the object gives its own *driver_of*.
    """
    intercepted = published.intercept(rows)
    if intercepted is not None:
        return intercepted
    try:
        return published.notify(rows, write((driver_of or _driver_of)(session), rows, options))
    except Exception as error:
        pooling.explain(error)
        raise


async def write_through_async(session: Any, rows: Sequence[EventRow], options: Options) -> Written | None:
    """Write *rows* through a session that is awaited; see `write`. Raises TypeError for any other kind."""
    intercepted = published.intercept(rows)
    if intercepted is not None:
        return intercepted
    library = _library_of(session, _ASYNC)
    if library == "sqlalchemy":
        # A registry of sessions, unlike a session, cannot run anything itself.
        runner = session if hasattr(session, "run_sync") else session()
        outcome: Written | None = await runner.run_sync(write_through, rows, options)
        return outcome
    try:
        return published.notify(rows, await write_async(_async_driver_of(session, library), rows, options))
    except Exception as error:
        pooling.explain(error)
        raise


def _library_of(session: object, kinds: frozenset[tuple[str, str]]) -> str | None:
    kind: Any = type(session)
    return _library(kind, kinds)


@lru_cache(maxsize=64)
def _library(kind: Any, kinds: frozenset[tuple[str, str]]) -> str | None:
    for base in kind.__mro__:
        library: str = base.__module__.partition(".")[0]
        if (library, base.__name__) in kinds:
            return library
    return None


def _driver_of(session: Any) -> Driver:
    library = _library_of(session, _SYNC)
    if library == "sqlalchemy":
        from outbox_pipeline.publish import sqlalchemy_sessions

        return sqlalchemy_sessions.driver_of(session)
    if library == "psycopg":
        from outbox_pipeline.publish import psycopg_connections

        return psycopg_connections.driver_of(session)
    if type(session).__module__.partition(".")[0] == "django":
        raise TypeError("In Django publish with outbox_pipeline.django.publish_event, which finds the connection.")
    if is_async_session(session):
        raise TypeError(f"{type(session).__name__} is awaited: call 'await publish_event_async(session, event)'.")
    raise TypeError(
        "Publishing needs a SQLAlchemy Session or Connection or a psycopg Connection that the transaction runs on, "
        f"not {type(session).__name__}."
    )


def _async_driver_of(session: Any, library: str | None) -> AsyncDriver:
    if library == "psycopg":
        from outbox_pipeline.publish import psycopg_connections

        return psycopg_connections.async_driver_of(session)
    if library == "asyncpg":
        from outbox_pipeline.publish import asyncpg_connections

        return asyncpg_connections.async_driver_of(session)
    if is_sync_session(session):
        raise TypeError(f"A {type(session).__name__} is not awaited: call 'publish_event(session, event)'.")
    raise TypeError(
        "Publishing needs a SQLAlchemy AsyncSession or AsyncConnection, a psycopg AsyncConnection or an asyncpg "
        f"Connection that the transaction runs on, not {type(session).__name__}."
    )
