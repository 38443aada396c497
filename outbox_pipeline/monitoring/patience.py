"""How long the doctor waits for a check: whatever hangs, it is one finding, and the checks behind it are made.

A check that is given up goes on in a thread of its own, which ends with the process.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue

from outbox_pipeline.monitoring.check import Check, skipped

#: Longest wait for one check. Each waits for its server by itself, for 5 s at most where that says when it gives up.
CHECK_SECONDS = 15.0


def in_time(checks: Iterable[Check], names: Sequence[str], *, seconds: float | None = None) -> Iterator[Check]:
    """Yield *checks*, which have these *names* in this order, until one has taken longer than *seconds*.

    That one is a finding then, and those behind it are skipped.
    """
    patience = CHECK_SECONDS if seconds is None else seconds
    made: SimpleQueue[Check | BaseException | None] = SimpleQueue()
    threading.Thread(target=_make, args=(checks, made), name="doctor", daemon=True).start()
    left = list(names)
    while True:
        try:
            found = made.get(timeout=patience)
        except Empty:
            said = (
                f"No answer within {patience:.0f} s: look whether the server hangs, or what lies between drops what is "
                "sent."
            )
            yield Check(left[0], False, said)
            yield from skipped(left[1:], left[0])
            return
        if found is None:
            return
        if isinstance(found, BaseException):
            raise found
        # A check that has nothing to say is left out.
        del left[: left.index(found.name) + 1]
        yield found


def _make(checks: Iterable[Check], made: "SimpleQueue[Check | BaseException | None]") -> None:
    try:
        for check in checks:
            made.put(check)
    except BaseException as error:  # noqa: BLE001 - raised again where the checks are taken
        made.put(error)
    made.put(None)
