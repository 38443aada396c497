"""What becomes of runs whose broker goes, hands them out twice, or keeps them waiting: each event is delivered once."""

import os
import signal

import pytest
from sqlalchemy import text

from outbox_pipeline.relay.points import Point
from tests.fixtures.celery_runs import (
    REQUEST_SECONDS,
    children,
    dead_run,
    known_runs,
    messages,
    run_of,
    runs,
    send_again,
    stopped_processes,
    wake,
    worker_pids,
    workers_at_rest,
)
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.stack import Running

pytestmark = pytest.mark.celery


def request_lasts(running: Running) -> float:
    """Return how many seconds after its beginning the request ends that no run has taken up; 0 without one."""
    statement = text(
        "SELECT max(extract(epoch FROM lease_until - requested_at)) FROM outbox.batch WHERE status = 'requested'"
    )
    with running.stores.engine.begin() as connection:
        return float(connection.scalar(statement) or 0)


def test_a_broker_that_goes_and_comes_back_loses_nothing(running: Running) -> None:
    """Runs under way end without it, what is published meanwhile is delivered afterwards, and no worker is started."""
    pids = worker_pids(running)
    known = known_runs(running)
    running.freeze_at(Point.LEASED)
    publish(running.stores.engine, 400)
    running.wait_killed()
    os.kill(running.stack.processes["broker"].pid, signal.SIGKILL)
    wake(stopped_processes({child for pid in pids.values() for child in children(pid)}))
    begun = known_runs(running, statuses=["STARTED", "SUCCESS"]) - known
    publish(running.stores.engine, 400)
    running.wait(
        lambda: any(run.status == "FAILURE" for run in runs(running) if run.run_id not in known),
        "a run that cannot be launched",
    )

    assert running.stack.revive() == ["broker"]
    running.wait_for_delivery()
    running.wait(lambda: not runs(running, statuses=["STARTED", "STARTING"]), "all runs to end")

    assert worker_pids(running) == pids
    assert {run_of(running, run_id).status for run_id in begun} == {"SUCCESS"}
    assert_each_exactly_once(running.stores.engine, running.stores.client)


def test_a_run_that_is_delivered_twice_is_done_once(running: Running) -> None:
    """While it is under way in one worker, and after it has ended, another one ignores the same message."""
    known = known_runs(running)
    running.freeze_at(Point.LEASED)
    publish(running.stores.engine, 20)
    running.wait_killed()
    run = dead_run(running, known)
    held = stopped_processes({child for pid in worker_pids(running).values() for child in children(pid)})
    send_again(running, run.run_id)
    ignored = "Ignoring a duplicate run that was started from somewhere other than the run monitor daemon"
    running.wait(lambda: ignored in messages(running, run.run_id), "the second message to be ignored")

    wake(held)
    running.wait(lambda: run_of(running, run.run_id).status in ("SUCCESS", "FAILURE"), "the run to end")
    running.wait_for_delivery()
    send_again(running, run.run_id)
    late = "Ignoring a run worker that started after the run had already finished."
    running.wait(lambda: late in messages(running, run.run_id), "the third message to be ignored")

    assert len(held) == 1
    assert_each_exactly_once(running.stores.engine, running.stores.client)


def test_a_run_that_waits_in_the_broker_is_not_asked_for_again(running: Running) -> None:
    """While all workers are busy a run may start later than OUTBOX_REQUEST_SECONDS, and is its batch's first still."""
    known = known_runs(running)
    with workers_at_rest(running):
        publish(running.stores.engine, 20)
        running.wait(lambda: len(runs(running, statuses=["STARTING"])) == 1, "a run to wait in the broker")
        running.wait(lambda: request_lasts(running) > REQUEST_SECONDS + 5, "a tick to let the request wait on")
    running.wait_for_delivery()

    assert [run.attempt for run in runs(running) if run.run_id not in known] == [1]
    assert_each_exactly_once(running.stores.engine, running.stores.client)
