"""Pods that start, die and are taken away: events are delivered once, and no run keeps its place."""

from collections.abc import Iterator

import dagster as dg
import pytest

from tests.fixtures.events import publish
from tests.fixtures.kubernetes import IMAGE, LEASE_SECONDS, SECRET, OnKubernetes
from tests.fixtures.proxy import Fault, Injection

pytestmark = pytest.mark.kubernetes

#: Between two ticks of the sensor, at most, while other tests are at work.
TICK_SECONDS = 5

FAILED = dg.DagsterRunStatus.FAILURE


@pytest.fixture
def held(stack: OnKubernetes) -> Iterator[tuple[str, Injection]]:
    """A run whose pod is about to send its batch: the insert is held on its way."""
    injection = stack.proxy.inject(Fault.HOLD_REQUEST)
    publish(stack.stores.engine, 30)
    injection.wait_reached()
    yield stack.run_in(dg.DagsterRunStatus.STARTED), injection
    injection.released.set()


def job_status(stack: OnKubernetes, run_id: str) -> dict[str, int]:
    """Return how many pods of a run's Job are active, have succeeded and have failed, where there are any."""
    job = stack.cluster.job_of(run_id)
    assert job is not None
    found: dict[str, int] = job["status"]
    return found


def test_events_arrive_through_a_pod(stack: OnKubernetes) -> None:
    """From the sensor through queue, Job and pod to ClickHouse; the pod has its settings from secret and config map."""
    publish(stack.stores.engine, 100)

    stack.assert_whole()

    (run,) = stack.runs()
    assert run.status == dg.DagsterRunStatus.SUCCESS
    stack.wait(lambda: job_status(stack, run.run_id) == {"succeeded": 1}, "the pod to end")
    job = stack.cluster.job_of(run.run_id)
    assert job is not None
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == IMAGE
    assert {"secretRef": {"name": SECRET}} in container["envFrom"]
    said = str(job)
    assert [value for value in stack.secret.values() if value in said] == []


def test_a_pod_that_is_killed_is_followed_by_another(stack: OnKubernetes, held: tuple[str, Injection]) -> None:
    """Its run fails, the next attempt delivers its batch, and an insert of its that comes later is refused."""
    run_id, injection = held

    stack.cluster.kill_pod(run_id)

    stack.wait_for_status(run_id, FAILED)
    stack.wait(lambda: stack.batches()[-1].status == "processed", "the next attempt")
    assert stack.batches()[-1].attempt == 2
    injection.release()
    stack.assert_whole()


def test_a_machine_that_goes_away_is_told_by_the_ledger(stack: OnKubernetes, held: tuple[str, Injection]) -> None:
    """Kubernetes shows a pod that runs for as long as nobody says otherwise; the run fails when its attempt is over."""
    run_id, _ = held

    stack.cluster.lose_pod(run_id)

    patience = 2 * LEASE_SECONDS + 6 * TICK_SECONDS
    stack.wait_for_status(run_id, FAILED, seconds=patience)
    assert job_status(stack, run_id) == {"active": 1}
    assert "Its attempt was taken over by attempt 2." in stack.said_of(run_id)
    stack.assert_whole()


def test_a_job_that_is_deleted_is_followed_by_another(stack: OnKubernetes, held: tuple[str, Injection]) -> None:
    """Dagster finds no Job, so the run fails; the batch is delivered by the next one."""
    run_id, injection = held

    stack.cluster.delete_job(run_id)

    stack.wait_for_status(run_id, FAILED)
    stack.wait(lambda: stack.cluster.pod_of(run_id) is None, "the pod to go")
    injection.release()
    stack.assert_whole()
    assert stack.batches()[-1].attempt == 2


def test_a_run_that_is_terminated_is_followed_by_another(stack: OnKubernetes, held: tuple[str, Injection]) -> None:
    """Terminate, as in Dagster's UI, takes the Job away with its pod; the batch waits for its next attempt."""
    run_id, injection = held

    assert stack.instance.run_launcher.terminate(run_id)

    assert stack.cluster.job_of(run_id) is None
    stack.wait_for_status(run_id, dg.DagsterRunStatus.CANCELED)
    stack.wait(lambda: stack.cluster.pod_of(run_id) is None, "the pod to go")
    injection.release()
    stack.assert_whole()
    assert stack.batches()[-1].attempt == 2
