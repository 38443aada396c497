"""How long a run takes to start: forked from the code server, on a Celery worker, or as a new interpreter.

    python -m benchmarks.run_starts [--runs 10] [--events 100]

Each way has a stack of its own on the same engines, and delivers batches one after the other. The seconds are medians,
from when the daemon has taken a run from its queue until its first op begins. Needs the extra celery, and redis-server.
"""

import argparse
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from unittest.mock import patch

from benchmarks.common import fresh_stores, last_position, publish
from benchmarks.stack import read_batches, running_dagster, wait_processed
from outbox_pipeline.orchestration.host import stack
from outbox_pipeline.orchestration.host.stack import CeleryPlan
from outbox_pipeline.stores import Stores

_SECONDS = 120


def main() -> None:
    """Run the measurement and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="runs of each way")
    parser.add_argument("--events", type=int, default=100, help="events of a run")
    given = parser.parse_args()
    with fresh_stores() as stores:
        for name, celery in {"forked": None, "Celery worker": CeleryPlan(1, 1), "new process": None}.items():
            with _code_server_of(name), running_dagster(stores, celery=celery):
                seconds = sorted(_start(stores, given.events) for _ in range(given.runs))
            print(f"{name}: median {median(seconds):.2f} s, {seconds[0]:.2f} to {seconds[-1]:.2f}", flush=True)


def _start(stores: Stores, events: int) -> float:
    """Deliver one batch and return how long its run took to start."""
    after = last_position(stores.engine)
    publish(stores.engine, events, first=after + 1)
    wait_processed(stores.engine, events, after=after, seconds=_SECONDS)
    return read_batches(stores, after=after)[0].parts()["process_start"]


def _code_server_of(name: str) -> AbstractContextManager[object]:
    """Let the stack have Dagster's own code server, which starts an interpreter for each run, for *new process*."""
    return patch.object(stack, "CODE_SERVER_MODULE", "dagster") if name == "new process" else nullcontext()


if __name__ == "__main__":
    main()
