"""Runs on two Celery workers deliver each event once, whatever dies; what died keeps no place of the queue."""

import os
import signal
import time

import psutil
import pytest

from outbox_pipeline.relay.points import Point
from tests.fixtures.celery_runs import (
    children,
    dead_run,
    group_of,
    known_runs,
    messages,
    run_of,
    runs,
    stopped_processes,
    wake,
    worker_pids,
    workers,
)
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.stack import Running

pytestmark = pytest.mark.celery

#: Of the tests' settings.
LEASE_SECONDS = 5
TERMINATE = "mutation Terminate($run: String!) { terminateRun(runId: $run) { __typename } }"

#: What a tick, the queue and the run itself take on a busy machine, on top of a lease.
SECONDS_ON_TOP = 25


def assert_recovered(running: Running, since: float) -> None:
    """Check that the other attempt came with the lease, that no run counts as at work, and that both sides agree."""
    running.wait_for_delivery()
    assert time.monotonic() - since < LEASE_SECONDS + SECONDS_ON_TOP
    running.wait(lambda: not runs(running, statuses=["STARTED", "STARTING"]), "dead runs to give their places back")
    assert_each_exactly_once(running.stores.engine, running.stores.client)


def test_ten_batches_are_shared_by_both_workers(running: Running) -> None:
    """Each run names the worker that did it, all events arrive, and the processes are kept for the next runs."""
    known = known_runs(running)
    names = {worker.name for worker in workers(running)}
    before = {pid: children(pid) for pid in worker_pids(running).values()}
    publish(running.stores.engine, 2000)

    running.wait_for_delivery()
    running.wait(lambda: len(known_runs(running, statuses=["SUCCESS"]) - known) >= 10, "ten runs to end")

    delivered = [run for run in runs(running, statuses=["SUCCESS"]) if run.run_id not in known]
    assert {run.worker for run in delivered} == names
    assert {pid: children(pid) for pid in worker_pids(running).values()} == before
    assert_each_exactly_once(running.stores.engine, running.stores.client)


def test_a_run_whose_process_is_killed_is_recovered(running: Running) -> None:
    """The worker replaces the process, another attempt delivers, and the dead run is reported as failed."""
    known = known_runs(running)
    running.kill_at(Point.LEASED)
    publish(running.stores.engine, 20)
    running.wait_killed()
    killed = time.monotonic()
    dead = dead_run(running, known)

    assert_recovered(running, killed)

    assert run_of(running, dead.run_id).status == "FAILURE"
    assert {len(children(pid)) for pid in worker_pids(running).values()} == {2}


def test_a_run_whose_worker_is_killed_is_recovered(running: Running) -> None:
    """Nothing is left to tell Celery of it; the other worker delivers, and the ledger's next attempt tells Dagster."""
    known = known_runs(running)
    running.kill_at(Point.SENT, whole_group=True)
    publish(running.stores.engine, 20)
    running.wait_killed()
    killed = time.monotonic()
    dead = dead_run(running, known)

    assert_recovered(running, killed)

    assert run_of(running, dead.run_id).status == "FAILURE"
    assert "Its attempt was taken over by attempt 2." in messages(running, dead.run_id)
    assert len(running.stack.revive()) == 1
    assert len(workers(running)) == 2


def test_the_processes_of_a_worker_go_with_it(running: Running) -> None:
    """Killed alone, it leaves no process behind that would go on with a run which nothing knows of."""
    name, pid = next(iter(worker_pids(running).items()))
    left = [psutil.Process(child) for child in children(pid)]

    os.kill(pid, signal.SIGKILL)

    assert len(left) == 2
    assert psutil.wait_procs(left, timeout=10)[1] == []
    assert running.stack.revive() == [name]
    assert len(workers(running)) == 2


def test_a_worker_that_was_frozen_writes_nothing_when_it_wakes(running: Running) -> None:
    """Past its lease another one delivers, the frozen run is reported as failed, and its insert is refused later."""
    known = known_runs(running)
    running.freeze_at(Point.SENDING, whole_group=True)
    publish(running.stores.engine, 20)
    running.wait_killed()
    frozen_at = time.monotonic()
    frozen = dead_run(running, known)
    held = stopped_processes({pid for worker in worker_pids(running).values() for pid in group_of(worker)})

    assert_recovered(running, frozen_at)
    assert run_of(running, frozen.run_id).status == "FAILURE"
    wake(held)
    running.wait(
        lambda: any("a later attempt on this batch has begun" in said for said in messages(running, frozen.run_id)),
        "the frozen run's insert to be refused",
    )

    assert len(held & set(worker_pids(running).values())) == 1
    assert len(workers(running)) == 2
    assert_each_exactly_once(running.stores.engine, running.stores.client)


def test_terminate_ends_a_run_on_a_worker(running: Running) -> None:
    """It ends where it stands, failed by Celery's launcher, its process is kept, and another run delivers."""
    known = known_runs(running)
    before = {pid: children(pid) for pid in worker_pids(running).values()}
    running.freeze_at(Point.LEASED)
    publish(running.stores.engine, 20)
    running.wait_killed()
    run = dead_run(running, known)
    held = stopped_processes({child for pid in worker_pids(running).values() for child in children(pid)})

    answer = running.graphql(TERMINATE, {"run": run.run_id})["terminateRun"]
    wake(held)
    running.wait(lambda: run_of(running, run.run_id).status == "FAILURE", "the run to end")
    running.wait_for_delivery()

    assert answer["__typename"] == "TerminateRunSuccess"
    assert {pid: children(pid) for pid in worker_pids(running).values()} == before
    assert_each_exactly_once(running.stores.engine, running.stores.client)
