"""The boundaries of a delivery: everything between two of them is one write, or none.

A process can be killed anywhere, but what it leaves behind depends only on the last boundary it reached. `announce`
tells the listeners, of which production has none. The fault suite kills, freezes and delays at each of them, and a
test fails when a write is added without a boundary of its own.
"""

from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum


class Point(StrEnum):
    """A boundary, named for what has just happened."""

    CLAIMING = "claiming"
    CLAIMED = "claimed"
    LOOKED_AGAIN = "looked_again"
    KNOWN_BYTES_SENT = "known_bytes_sent"
    CUT = "cut"
    REQUESTED = "requested"
    LEASED = "leased"
    EXTRACTED = "extracted"
    VALIDATED = "validated"
    FROZEN = "frozen"
    NUMBERED = "numbered"
    WITNESSED = "witnessed"
    FENCED = "fenced"
    GENERATION_RAISED = "generation_raised"
    SENDING = "sending"
    OLDER_DELETED = "older_deleted"
    SENT = "sent"
    ANSWERED = "answered"
    REFROZEN = "refrozen"
    PROVEN = "proven"
    MARKING = "marking"
    MARKED = "marked"
    SPLITTING = "splitting"
    SPLIT = "split"


_listeners: list[Callable[[Point], None]] = []


def announce(point: Point) -> None:
    """Tell the listeners that this process has reached *point*."""
    for listener in _listeners:
        listener(point)


def listen(listener: Callable[[Point], None]) -> Callable[[], None]:
    """Call *listener* at each boundary from now on; return what ends it."""
    _listeners.append(listener)

    def end() -> None:
        with suppress(ValueError):
            _listeners.remove(listener)

    return end
