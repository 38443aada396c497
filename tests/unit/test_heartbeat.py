"""The thread that renews a lease ends with the delivery that has begun it."""

import sys
import threading
from datetime import timedelta
from itertools import count
from types import FrameType
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine

from outbox_pipeline.batches import Lease
from outbox_pipeline.limits import USUAL_LIMITS
from outbox_pipeline.relay.heartbeat import Heartbeat


def test_an_interrupt_while_it_begins_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terminate may raise once the thread runs; the worker's process is kept, and the lease is to run out all the same.

    A third of the lease passes before the first renewal, so nothing is asked of the engine here.
    """
    begin = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        begin(thread)
        raise KeyboardInterrupt

    lease = Lease(uuid4(), 1, "worker")
    heartbeat = Heartbeat(create_engine("sqlite://"), lease, lasting=timedelta(hours=1), limits=USUAL_LIMITS)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            heartbeat.start()

    for thread in [one for one in threading.enumerate() if one.name == f"heartbeat-{lease.batch_id}"]:
        thread.join(10)
        assert not thread.is_alive()


def test_an_interrupt_while_it_is_stopped_keeps_nobody_waiting() -> None:
    """Terminate may raise at each step of the order to stop; the run's end orders it again, which ends the thread."""
    for at in count(1):
        heartbeat = Heartbeat(
            create_engine("sqlite://"), Lease(uuid4(), 1, "worker"), lasting=timedelta(hours=1), limits=USUAL_LIMITS
        ).start()
        is_interrupted = stop_interrupted(heartbeat, at)
        again = threading.Thread(target=heartbeat.stop, daemon=True)
        again.start()
        again.join(10)
        assert not again.is_alive(), f"the second order waits for ever after an interrupt at step {at} of the first"
        if not is_interrupted:
            return


def stop_interrupted(heartbeat: Heartbeat, at: int) -> bool:
    """Stop it with an interrupt at a step, a line or a return; return whether the order has so many."""
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        # From here on Python's own thread is waited for.
        if frame.f_code.co_name == "is_alive":
            sys.settrace(None)
            return None
        if event in ("line", "return"):
            steps += 1
            if steps == at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        heartbeat.stop()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
