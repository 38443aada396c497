"""Attempts: who holds a lease, and how long the next attempt waits."""

import subprocess
import sys
from datetime import timedelta

from outbox_pipeline.errors import InDoubtError, TransientError
from outbox_pipeline.relay.attempts import backoff, error_kind
from outbox_pipeline.settings import Settings


def test_a_forked_process_holds_leases_under_its_own_name() -> None:
    """Runs are forked from one process; a name shared between two would let both write about one batch."""
    # In a process of its own: forked beside this one's threads, a child can wait for a lock that nobody gives back.
    program = (
        "import os\n"
        "from outbox_pipeline.relay.attempts import holder\n"
        "print(holder(), flush=True)\n"
        "child = os.fork()\n"
        "child and os.waitpid(child, 0)\n"
        "print(holder(), flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    before, *after = done.stdout.split()
    assert after.count(before) == 1
    assert len({before, *after}) == 2


def test_waits_double_up_to_a_limit_with_some_jitter() -> None:
    """Each failure doubles the wait until the limit; no wait is longer than it or shorter than three quarters."""
    settings = Settings(retry_base_seconds=2, retry_max_seconds=60)

    for failures, seconds in ((0, 2), (1, 4), (3, 16), (5, 60), (500, 60)):
        wait = backoff(failures, settings)
        assert timedelta(seconds=seconds * 0.75) <= wait <= timedelta(seconds=seconds)


def test_each_kind_of_error_has_a_word_in_the_ledger() -> None:
    """Known kinds are named; anything else is unexpected."""
    assert [error_kind(error) for error in (TransientError("x"), InDoubtError("x"), KeyError("x"))] == [
        "transient",
        "in_doubt",
        "unexpected",
    ]
