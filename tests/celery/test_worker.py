"""The command `outbox worker`: which processes it keeps, how it ends, and what the doctor says of all workers."""

import os
import shlex
import signal
from functools import partial
from socket import gethostname

import pytest

from outbox_pipeline.monitoring.doctor_celery import examine_celery
from outbox_pipeline.relay.points import Point
from outbox_pipeline.settings import Settings
from tests.fixtures.celery_runs import children, runs, sole_worker, stopped_processes, wake, workers
from tests.fixtures.commands import run_outbox
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.stack import Running

pytestmark = pytest.mark.celery


def frozen_run(running: Running, worker: int) -> set[int]:
    """Publish, and return the processes of *worker* that stand still in the run for it."""
    running.freeze_at(Point.LEASED)
    publish(running.stores.engine, 20)
    running.wait_killed()
    return stopped_processes(children(worker))


def test_a_worker_ends_its_run_and_keeps_no_large_process(running: Running) -> None:
    """A process that has held more than its bound is replaced; after SIGTERM the run under way ends, and then it.

    Ctrl-C, which a terminal sends to the processes for runs too, breaks no run off.
    """
    with sole_worker(running, "--concurrency", "1", "--max-memory", "1") as process:
        first = children(process.pid)
        publish(running.stores.engine, 20)
        running.wait_for_delivery()
        running.wait(lambda: not children(process.pid) & first, "the process to be replaced")

        held = frozen_run(running, process.pid)
        process.send_signal(signal.SIGTERM)
        for pid in held:
            os.kill(pid, signal.SIGINT)
        wake(held)

        assert process.wait(60) == 0
    running.wait_for_delivery()
    latest = runs(running)[0]
    assert (latest.status, latest.attempt, latest.worker) == ("SUCCESS", 1, f"outbox-{process.pid}@{gethostname()}")
    assert_each_exactly_once(running.stores.engine, running.stores.client)


def test_a_second_ctrl_c_gives_the_run_up(running: Running) -> None:
    """The run has failed, the worker ends, and another one delivers."""
    log = running.stack.plan.home / "logs" / "sole-worker.log"
    with sole_worker(running, "--concurrency", "1") as process:
        held = frozen_run(running, process.pid)
        for told in ("Runs under way end first", "will terminate all running tasks"):
            os.killpg(process.pid, signal.SIGINT)
            running.wait(partial(lambda told: told in log.read_text(), told), "the worker to answer Ctrl-C")
        wake(held)

        process.wait(60)
    running.wait(lambda: runs(running)[0].status == "SUCCESS", "another run to deliver")
    delivered, given_up = runs(running)[:2]
    assert (given_up.status, given_up.worker) == ("FAILURE", f"outbox-{process.pid}@{gethostname()}")
    assert delivered.attempt == 2
    assert_each_exactly_once(running.stores.engine, running.stores.client)


def test_the_doctor_asks_the_workers(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broker, places and settings are in order, and a setting that the workers have otherwise is named.

    What `outbox env` prints leads there, and takes nothing from the file that the workers read.
    """
    workers(running)
    file = running.stack.plan.home / "dagster" / "dagster.yaml"
    before = file.read_text(encoding="utf-8")
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    for line in run_outbox("env").stdout.splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        monkeypatch.setenv(name, *shlex.split(value))

    found = list(examine_celery(Settings(), os.environ))
    monkeypatch.setenv("OUTBOX_LEASE_SECONDS", "7")
    other = list(examine_celery(Settings(), os.environ))

    assert file.read_text(encoding="utf-8") == before
    assert [check.ok for check in found] == [True, True, True], found
    assert "2 workers with 4 places for runs answer" in found[1].message
    assert other[2].ok is False
    assert "another value of OUTBOX_LEASE_SECONDS" in other[2].message
