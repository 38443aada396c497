"""Embedded engines for as long as a process uses them.

Every process that uses them is an entry in the home's list; engines run while the list is not empty, and the last of
these processes stops them when it ends. One that was killed leaves its engines running: the next takes them over, and
the ClickHouse server, which watches the list, stops both a few seconds after the last process has died.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from outbox_pipeline.embedded.clickhouse import running_clickhouse, start_clickhouse, stop_clickhouse
from outbox_pipeline.embedded.homes import Home, add_user, live_users, locked
from outbox_pipeline.embedded.places import known_sockets
from outbox_pipeline.embedded.postgres import (
    PostgresHandle,
    host_parameter,
    running_postgres,
    start_postgres,
    stop_postgres,
)
from outbox_pipeline.folders import require_own


@dataclass(frozen=True)
class EngineUrls:
    """Where the engines of a home are reached; None for an engine that does not run."""

    postgres: str | None
    dagster: str | None
    clickhouse: str | None


@contextmanager
def embedded_engines(
    home: Path, *, postgres: bool = True, clickhouse: bool = True, on_up: Callable[[str], None] = lambda _: None
) -> Iterator[EngineUrls]:
    """Run the engines asked for on *home* during the block, joining those that run already.

    *on_up* is told the name of each that answers. Raises ConfigurationError, which says what to do, when a wheel is
    missing or an engine does not start.
    """
    place = Home(home.expanduser().resolve())
    place.create()
    user = None
    try:
        with locked(place):
            user = add_user(place)
            if postgres:
                start_postgres(place)
                on_up("PostgreSQL")
            if clickhouse:
                start_clickhouse(place)
                on_up("ClickHouse")
        yield running_engines(place.path)
    finally:
        if user is not None:
            _leave(place, user)


@contextmanager
def reached_engine(home: Path, name: str) -> Iterator[None]:
    """Keep the engine *name*, `postgres` or `clickhouse`, during the block, without a wait for one that runs already.

    One that runs may be stopped or hang, and so may a process that holds the home's lock. Raises ConfigurationError as
    `embedded_engines`, which starts one that does not run.
    """
    place = Home(home.expanduser().resolve())
    if engine_pids(home).get(name) is None:
        with embedded_engines(home, postgres=name == "postgres", clickhouse=name == "clickhouse"):
            yield
        return
    place.create()
    user = add_user(place)
    try:
        yield
    finally:
        _leave(place, user, wait=False)


def engine_pids(home: Path) -> dict[str, int]:
    """Return the process ids of the engines that run on *home* now, by the names `postgres` and `clickhouse`."""
    place = Home(home.expanduser().resolve())
    found = {"postgres": running_postgres(place), "clickhouse": running_clickhouse(place)}
    return {name: handle.pid for name, handle in found.items() if handle is not None}


def running_engines(home: Path) -> EngineUrls:
    """Return the URLs of what runs on *home* now; starts nothing.

    Raises ConfigurationError when the home belongs to another account.
    """
    place = Home(home.expanduser().resolve())
    require_own(place.path)
    postgres = running_postgres(place)
    clickhouse = running_clickhouse(place)
    return EngineUrls(
        postgres=_database_url(postgres, "outbox", driver="psycopg"),
        dagster=_database_url(postgres, "dagster", driver="psycopg2"),
        clickhouse=clickhouse.url if clickhouse else None,
    )


def leads_to(url: str, home: Path) -> bool:
    """Return whether a URL of PostgreSQL is that of the home's server, whether or not it runs; makes nothing."""
    return url.endswith(host_parameter(known_sockets(Home(home.expanduser().resolve()))))


def serves(home: Path, *, postgres: str | None, clickhouse: str | None) -> bool:
    """Return whether one of these URLs is of the home's engines: PostgreSQL's always, ClickHouse's while it runs."""
    return (postgres is not None and leads_to(postgres, home)) or (
        clickhouse is not None and clickhouse == running_engines(home).clickhouse
    )


def _database_url(handle: PostgresHandle | None, database: str, *, driver: str) -> str | None:
    return handle.url(database, driver=driver) if handle else None


def _leave(home: Home, user: Path, *, wait: bool = True) -> None:
    if not home.users.is_dir():
        # The home was removed meanwhile; its servers notice that by themselves.
        return
    with locked(home, wait=wait) as is_locked:
        user.unlink(missing_ok=True)
        # Where another process holds the lock, it or ClickHouse's server stops what is not used any more.
        if is_locked and not live_users(home):
            stop_clickhouse(home)
            stop_postgres(home)
