"""Where a relay's time goes: how long each stage of the deliveries took, whatever loop runs them and in which threads.

A stage is a call of one of the procedures a loop is made of; what one stage calls of another counts for the other. Its
parts lie between the points that it announces (`relay.points`), so `load` splits into what comes before the first byte
(`sending`), encoding and sending (`sent`) and the proof (`proven`); `rest` comes after the last point. Stages that
overlap in two threads both count in full, so their sum may exceed the time on the clock.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from outbox_pipeline.relay import loop
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.points import Point, listen

#: Stage → where the procedure is that it stands for.
_STAGES: dict[str, tuple[Any, str]] = {
    "cut": (loop, "cut_batches"),
    "request": (loop, "request_batches"),
    "lease": (loop, "start_requested"),
    "extract": (Delivery, "extract"),
    "validate": (Delivery, "validate"),
    "load": (Delivery, "load"),
    "mark": (Delivery, "mark"),
}


class Stages:
    """The seconds of each stage and part, summed over batches."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._parts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._lock = threading.Lock()
        self._thread = threading.local()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage, in the order of a delivery."""
        return {stage: round(sum(self._parts[stage].values()), 3) for stage in _STAGES if stage in self._parts}

    @property
    def parts(self) -> dict[str, dict[str, float]]:
        """Seconds of each part of each stage."""
        return {
            stage: {part: round(seconds, 3) for part, seconds in self._parts[stage].items()}
            for stage in self.seconds
            if len(self._parts[stage]) > 1
        }

    def timed(self, stage: str, procedure: Callable[..., Any]) -> Callable[..., Any]:
        """Return the procedure with its time taken."""

        @wraps(procedure)
        def taken(*args: Any, **kwargs: Any) -> Any:
            self._count("waiting")
            self._open.append(stage)
            try:
                return procedure(*args, **kwargs)
            finally:
                self._count("rest")
                self._open.pop()

        return taken

    def reached(self, point: Point) -> None:
        """Count the time since the last point of this thread's stage."""
        self._count(point.value)

    @property
    def _open(self) -> list[str]:
        if not hasattr(self._thread, "open"):
            self._thread.open = []
        found: list[str] = self._thread.open
        return found

    def _count(self, part: str) -> None:
        now = time.perf_counter()
        if self._open:
            with self._lock:
                self._parts[self._open[-1]][part] += now - self._thread.since
        self._thread.since = now


@contextmanager
def watched_stages() -> Iterator[Stages]:
    """Take the times of everything this process relays during the block."""
    stages = Stages()
    end = listen(stages.reached)
    with ExitStack() as stack:
        stack.callback(end)
        for stage, (owner, name) in _STAGES.items():
            procedure = getattr(owner, name)
            setattr(owner, name, stages.timed(stage, procedure))
            stack.callback(setattr, owner, name, procedure)
        yield stages
