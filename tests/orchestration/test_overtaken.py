"""A run that the ledger has gone on without is ended in Dagster, and no other one is."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import dagster as dg
import pytest

from outbox_pipeline.batches import BATCH_ID_TAG
from outbox_pipeline.orchestration.delivery.overtaken import OVER_SINCE_TAG
from outbox_pipeline.orchestration.run_tags import ATTEMPT_TAG
from outbox_pipeline.relay.attempts import start_requested, start_unrequested
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish
from tests.fixtures.sensors import end_lease, pipeline, tick


def started_run(instance: dg.DagsterInstance, tags: dict[str, str], *, job: str = "deliver_batch") -> str:
    """Make a run that Dagster counts among those at work, and return its id."""
    run = dg.DagsterRun(job_name=job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    instance.add_run(run)
    return run.run_id


@pytest.fixture
def dead(instance: dg.DagsterInstance, stores: Stores) -> str:
    """A run that took its batch and died; a tick has asked for the next attempt since."""
    publish(stores.engine, 3)
    (request,) = tick(instance, pipeline(stores)).run_requests or []
    tags = {name: request.tags[name] for name in (BATCH_ID_TAG, ATTEMPT_TAG)}
    run_id = started_run(instance, tags)
    start_requested(stores, UUID(tags[BATCH_ID_TAG]), 1, run_id=run_id).close()
    assert not tick(instance, pipeline(stores)).run_requests
    assert OVER_SINCE_TAG not in run_of(instance, run_id).tags
    end_lease(stores)
    (again,) = tick(instance, pipeline(stores)).run_requests or []
    assert again.tags[ATTEMPT_TAG] == "2"
    return run_id


def run_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    """Return a run as Dagster has it now."""
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def look(instance: dg.DagsterInstance, stores: Stores, run_id: str, *, seconds: float) -> dg.DagsterRun:
    """Tick, tick again when a run was seen to be over *seconds* ago, and return the run."""
    tick(instance, pipeline(stores))
    if OVER_SINCE_TAG in run_of(instance, run_id).tags:
        since = datetime.now(UTC) - timedelta(seconds=seconds)
        instance.add_run_tags(run_id, {OVER_SINCE_TAG: since.isoformat()})
        tick(instance, pipeline(stores))
    return run_of(instance, run_id)


def test_a_run_whose_attempt_is_over_gives_its_place_back(
    instance: dg.DagsterInstance, stores: Stores, dead: str
) -> None:
    """After a lease in which it did not end itself, it fails with a sentence that says who has its batch."""
    lease = stores.settings.lease_seconds

    assert look(instance, stores, dead, seconds=lease / 2).status == dg.DagsterRunStatus.STARTED
    assert look(instance, stores, dead, seconds=lease + 1).status == dg.DagsterRunStatus.FAILURE
    said = [entry.dagster_event.message for entry in instance.all_logs(dead) if entry.dagster_event]
    assert said == ["Its attempt was taken over by attempt 2."]


def test_a_run_that_was_executed_again_is_left_alone(instance: dg.DagsterInstance, stores: Stores, dead: str) -> None:
    """It has the tags of the run before it, and its batch; what was seen before it took that counts no more."""
    tags = {name: run_of(instance, dead).tags[name] for name in (BATCH_ID_TAG, ATTEMPT_TAG)}
    again = started_run(instance, tags)
    tick(instance, pipeline(stores))
    assert run_of(instance, again).tags[OVER_SINCE_TAG]
    end_lease(stores)
    start_unrequested(stores, UUID(tags[BATCH_ID_TAG]), run_id=again).close()

    tick(instance, pipeline(stores))
    assert not run_of(instance, again).tags[OVER_SINCE_TAG]
    assert look(instance, stores, again, seconds=3600).status == dg.DagsterRunStatus.STARTED
    assert look(instance, stores, dead, seconds=3600).status == dg.DagsterRunStatus.FAILURE


@pytest.mark.parametrize(
    ("job", "tags"),
    [
        ("deliver_batch", {}),
        ("deliver_batch", {BATCH_ID_TAG: "none", ATTEMPT_TAG: "1"}),
        ("deliver_batch", {BATCH_ID_TAG: "01a222d3-d9b0-7f7a-9073-341595b00000", ATTEMPT_TAG: "1"}),
        ("recheck_batches", {}),
    ],
)
def test_other_runs_are_left_alone(
    instance: dg.DagsterInstance, stores: Stores, dead: str, job: str, tags: dict[str, str]
) -> None:
    """A run of a day, of another outbox's batch, or of another job has no attempt here that could be over."""
    other = started_run(instance, tags, job=job)

    assert look(instance, stores, dead, seconds=3600).status == dg.DagsterRunStatus.FAILURE
    assert look(instance, stores, other, seconds=3600).status == dg.DagsterRunStatus.STARTED
