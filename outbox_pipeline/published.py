"""Where publishing can be watched, or taken over, within this process; an application's tests do, production does not.

`publish` calls `intercept` before it needs the session and `notify` after it has written. `testing` listens.

Invariant: with no listener both cost one look at an empty list, and neither can change what is written.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from outbox_pipeline.events import EventRow

    #: Is given the events of one call; returns what they were to it.
    Listener = Callable[[Sequence[EventRow]], "Written"]


class Written(NamedTuple):
    """What became of the events of one call: how many were new, and the ids of repeats that say something else."""

    new_count: int
    differing: tuple[UUID, ...] = ()


_observers: "list[Listener]" = []
_stand_ins: "list[Listener]" = []


def notify(rows: "Sequence[EventRow]", written: Written | None) -> Written | None:
    """Tell the observers that *rows* were written, in a transaction that has not ended yet; return *written*.

    They are told nothing when it is None: best effort has given the events up.
    """
    if written is not None:
        for observer in _observers:
            observer(rows)
    return written


def intercept(rows: "Sequence[EventRow]") -> Written | None:
    """Hand *rows* to what stands in for the outbox and return what they were to it; None when nothing stands in."""
    return _stand_ins[-1](rows) if _stand_ins else None


def observe(observer: "Listener") -> Callable[[], None]:
    """Tell *observer* of all events published from now on; return what ends it."""
    return _added(_observers, observer)


def replace_outbox(stand_in: "Listener") -> Callable[[], None]:
    """Give events to *stand_in* from now on and write none; return what ends it."""
    return _added(_stand_ins, stand_in)


def _added(listeners: "list[Listener]", listener: "Listener") -> Callable[[], None]:
    listeners.append(listener)

    def end() -> None:
        with suppress(ValueError):
            listeners.remove(listener)

    return end
