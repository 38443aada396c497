"""The command `outbox worker`: which processes it keeps, how it ends, and what the doctor says of all workers."""

import signal
from socket import gethostname

import pytest

from outbox_pipeline.monitoring.doctor_celery import examine_celery
from outbox_pipeline.relay.points import Point
from outbox_pipeline.settings import Settings
from tests.fixtures.celery_runs import children, runs, sole_worker, stopped_processes, wake, workers
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.stack import Running

pytestmark = pytest.mark.celery


def test_a_worker_ends_its_run_and_keeps_no_large_process(running: Running) -> None:
    """A process that has held more than its bound is replaced; after SIGTERM the run under way ends, and then it."""
    with sole_worker(running, "--concurrency", "1", "--max-memory", "1") as process:
        first = children(process.pid)
        publish(running.stores.engine, 20)
        running.wait_for_delivery()
        running.wait(lambda: not children(process.pid) & first, "the process to be replaced")

        running.freeze_at(Point.LEASED)
        publish(running.stores.engine, 20)
        running.wait_killed()
        held = stopped_processes(children(process.pid))
        process.send_signal(signal.SIGTERM)
        wake(held)

        assert process.wait(60) == 0
    running.wait_for_delivery()
    latest = runs(running)[0]
    assert (latest.status, latest.attempt, latest.worker) == ("SUCCESS", 1, f"outbox-{process.pid}@{gethostname()}")
    assert_each_exactly_once(running.stores.engine, running.stores.client)


def test_the_doctor_asks_the_workers(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broker, places and settings are in order, and a setting that the workers have otherwise is named."""
    workers(running)
    for name, value in running.stack.environment.items():
        monkeypatch.setenv(name, value)

    found = list(examine_celery(Settings(), running.stack.environment))
    monkeypatch.setenv("OUTBOX_LEASE_SECONDS", "7")
    other = list(examine_celery(Settings(), running.stack.environment))

    assert [check.ok for check in found] == [True, True, True], found
    assert "2 workers with 4 places for runs answer" in found[1].message
    assert other[2].ok is False
    assert "another value of OUTBOX_LEASE_SECONDS" in other[2].message
