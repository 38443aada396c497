"""The thread that renews a lease ends with the delivery that has begun it."""

import threading
from datetime import timedelta
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
