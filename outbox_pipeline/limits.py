"""How long the steps of a delivery may take, and how a wait that has lasted too long is ended.

It is ended by shutting down the sockets that it waits on.
A thread that waits inside a driver cannot be interrupted, but an end of file on its socket ends the wait, and the
driver raises. The server is not asked first: one that answers ends what lasts too long by itself, and one that does not
answer would not hear of it. Invariant: a socket is shut down and never closed from here, so its number stays its
owner's.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class StepLimits:
    """Seconds that a delivery may take until its next sign of life; after them its lease is no longer renewed.

    `working`: without a store, in validation for instance, or between two ops of Dagster. `statement`: one statement of
    the ledger. `reading`: the read of a small batch, a large one has more.
    """

    working: float = 600
    statement: float = 30
    reading: float = 120


USUAL_LIMITS = StepLimits()

#: A disk or a network that hands out less of a batch is waited for in vain.
SLOWEST_BYTES_PER_SECOND = 250_000


class Limit:
    """The end of one wait: the sockets it is about, and whether it is over."""

    def __init__(self) -> None:
        """Begin without a socket."""
        self.is_over = False
        self._is_closed = False
        self._lock = threading.Lock()
        self._held: list[socket.socket] = []

    def hold(self, descriptor: int) -> None:
        """Shut this open socket down when the limit is over, at once when it is over already."""
        with self._lock:
            if not self._is_closed:
                self._held.append(socket.socket(fileno=os.dup(descriptor)))
        if self.is_over:
            self.end()

    def end(self) -> None:
        """Give the threads that wait on the sockets an end of file."""
        with self._lock:
            self.is_over = True
            for held in self._held:
                with suppress(OSError):
                    held.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the sockets go; their owners have them still."""
        with self._lock:
            self._is_closed = True
            for held in self._held:
                held.close()
            self._held.clear()


class _Here(threading.local):
    limit: Limit | None = None


_here = _Here()


@contextmanager
def limited(seconds: float) -> Iterator[Limit]:
    """End the waits of this block, on the sockets that are held, when it has lasted for *seconds*."""
    limit = Limit()
    timer = threading.Timer(seconds, limit.end)
    timer.name, timer.daemon = "limit", True
    timer.start()
    outer, _here.limit = _here.limit, limit
    try:
        yield limit
    finally:
        _here.limit = outer
        timer.cancel()
        limit.close()


def current_limit() -> Limit | None:
    """Return the limit of the block that this thread is in."""
    return _here.limit
