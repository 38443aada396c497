"""No wait for PostgreSQL lasts for ever: limits on our side, for servers that have stopped answering.

PostgreSQL's own timeouts end what a server that answers does for too long. A stopped backend, or a network that
forwards nothing, keeps them from arriving, and libpq itself waits without an end. psycopg waits in Python, so its limit
needs no other thread; the driver of the bulk read waits in C, so its socket is shut down (`outbox_pipeline.limits`).
Invariant: a connection that has reached its limit is closed and never used again.
"""

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Connection, Engine, event

#: For what keeps no server busy: the ping before a connection is used again, the rollback before it is put back.
PING_SECONDS = 10

#: Longest opening of a connection by a driver that asks for more before it hands it out.
OPENING_SECONDS = 15

#: How a sentence about a limit ends.
CLOSED = "so its connection was closed: check the server and what lies between."

#: Other threads may open sockets while a driver opens its own; so many times it is opened anew.
_OPENINGS = 5

_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)

_opening = threading.Lock()
_RV = TypeVar("_RV")


class SilentError(psycopg.OperationalError):
    """PostgreSQL has not answered within a limit of ours; the connection is closed."""

    def __init__(self, seconds: float) -> None:
        """Say how long it was waited for."""
        super().__init__(f"did not answer a statement within {seconds:.0f} s, {CLOSED}")


class WatchedConnection(psycopg.Connection[Any]):
    """A connection whose waits have a limit: each statement, COMMIT and ROLLBACK of its own."""

    #: None waits for as long as it takes.
    limit_seconds: float | None = PING_SECONDS

    def wait(self, gen: PQGen[_RV], *args: Any, **keywords: Any) -> _RV:
        """Wait for an answer; raises SilentError when it does not come in time."""
        if self.limit_seconds is not None:
            gen = self._within(gen, self.limit_seconds)
        return super().wait(gen, *args, **keywords)

    def _within(self, gen: PQGen[_RV], seconds: float) -> PQGen[_RV]:
        # The driver comes back with what is ready, and ten times a second with nothing.
        end = time.monotonic() + seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if time.monotonic() > end:
                    self.close()
                    raise SilentError(seconds)
                wanted = gen.send(ready)
        except StopIteration as result:
            answer: _RV = result.value
            return answer


class Closing(Protocol):
    """A connection of some driver."""

    def close(self) -> None:
        """End it."""


_Opened = TypeVar("_Opened", bound=Closing)


def client_limit(seconds: float) -> float:
    """Return how long to wait for what the server itself ends after *seconds*: its own words are better than ours."""
    return seconds + max(1, seconds / 6)


def watch(engine: Engine, *, ping_seconds: float = PING_SECONDS) -> None:
    """Limit the engine's waits: of its pool by *ping_seconds*, of a transaction by what `allow` says."""

    def allow_little(connection: WatchedConnection, _record: Any, _state: Any) -> None:
        connection.limit_seconds = ping_seconds

    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "checkout", _allow_all)
    event.listen(engine, "reset", allow_little)


def allow(connection: Connection, seconds: float) -> None:
    """Wait for each statement of this transaction a little longer than *seconds*, after which the server ends it."""
    driver = connection.connection.driver_connection
    if isinstance(driver, WatchedConnection):
        driver.limit_seconds = client_limit(seconds)


def open_watched(
    connect: Callable[[], _Opened], ports: Collection[int], *, seconds: float = OPENING_SECONDS
) -> tuple[_Opened, int | None]:
    """Open a connection whose driver keeps its socket to itself, within *seconds*, and find that socket.

    It is the one that is there afterwards and was not before; should other threads open some in that moment, the one
    that leads to one of these *ports*. None when that is never one alone: its waits have no limit then.
    """
    with _opening:
        for _ in range(_OPENINGS):
            before = _sockets()
            with _cut_off(before, ports, seconds):
                connection = connect()
            opened = _sockets().items() - before.items()
            found = opened if len(opened) == 1 else {each for each in opened if _leads_to(each[0], ports)}
            if len(found) == 1:
                return connection, next(iter(found))[0]
            connection.close()
    with _cut_off(_sockets(), ports, seconds):
        return connect(), None


@contextmanager
def _cut_off(before: dict[int, int], ports: Collection[int], seconds: float) -> Iterator[None]:
    # A driver may ask the server for more before it hands the connection out, behind the timeout of the connect.
    def cut() -> None:
        for descriptor, _ in _sockets().items() - before.items():
            with suppress(OSError):
                if _leads_to(descriptor, ports):
                    with socket.socket(fileno=os.dup(descriptor)) as copy:
                        copy.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def ports_of(engine: Engine) -> set[int]:
    """Return the ports on which the engine's servers listen, as far as its URL says."""
    _, parameters = engine.dialect.create_connect_args(engine.url)
    named = str(parameters.get("port") or os.environ.get("PGPORT") or "").split(",")
    return {int(port) for port in named if port.isdigit()} or {5432}


def _sockets() -> dict[int, int]:
    found = {}
    for descriptor in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        # The folder itself was open while it was listed, and other threads close theirs.
        with suppress(OSError):
            state = os.fstat(descriptor)
            if stat.S_ISSOCK(state.st_mode) and _is_stream(descriptor):
                found[descriptor] = state.st_ino
    return found


def _is_stream(descriptor: int) -> bool:
    # Looking up a name opens others, for a moment.
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        return copy.family in _FAMILIES and copy.type == socket.SOCK_STREAM


def _leads_to(descriptor: int, ports: Collection[int]) -> bool:
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        peer = copy.getpeername()
        if isinstance(peer, str):
            return any(peer.endswith(f"/.s.PGSQL.{port}") for port in ports)
        return peer[1] in ports
    return False


def _connect(_dialect: Any, _record: Any, arguments: Any, parameters: Any) -> WatchedConnection:
    return WatchedConnection.connect(*arguments, **parameters)


def _allow_all(connection: WatchedConnection, _record: Any, _proxy: Any) -> None:
    connection.limit_seconds = None
