"""Requests that no run takes up: what Dagster knows decides how long they wait."""

import dagster as dg
import pytest
from sqlalchemy import text

from outbox_pipeline.batches import BATCH_ID_TAG
from outbox_pipeline.orchestration.run_tags import ATTEMPT_TAG
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish
from tests.fixtures.sensors import end_lease, pipeline, tick


def age(stores: Stores, seconds: float) -> None:
    """Let the open request have been made this long ago; its own end is still far away."""
    with stores.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE outbox.batch SET requested_at = clock_timestamp() - make_interval(secs => :seconds),"
                " lease_until = clock_timestamp() + interval '1 hour', lasting = interval '1 hour'"
            ),
            {"seconds": seconds},
        )


def requested_run(instance: dg.DagsterInstance, stores: Stores, status: dg.DagsterRunStatus) -> None:
    """Give the first request a run in this status."""
    (request,) = tick(instance, pipeline(stores)).run_requests or []
    tags = {BATCH_ID_TAG: request.tags[BATCH_ID_TAG], ATTEMPT_TAG: request.tags[ATTEMPT_TAG]}
    instance.add_run(dg.DagsterRun(job_name="deliver_batch", tags=tags, status=status))


@pytest.mark.parametrize(
    ("status", "again"),
    [
        (dg.DagsterRunStatus.FAILURE, 1),
        (dg.DagsterRunStatus.CANCELED, 1),
        (dg.DagsterRunStatus.NOT_STARTED, 0),
        (dg.DagsterRunStatus.STARTING, 0),
    ],
)
def test_a_request_whose_run_has_ended_is_made_again(
    instance: dg.DagsterInstance, stores: Stores, status: dg.DagsterRunStatus, again: int
) -> None:
    """A run that ended before it took its batch is replaced at the next tick; one on its way is waited for."""
    publish(stores.engine, 3)
    requested_run(instance, stores, status)
    age(stores, 15)

    assert len(tick(instance, pipeline(stores)).run_requests or []) == again


@pytest.mark.parametrize(("seconds", "again"), [(15, 0), (40, 1)])
def test_a_request_that_never_became_a_run_is_made_again(
    instance: dg.DagsterInstance, stores: Stores, seconds: float, again: int
) -> None:
    """When a process died between the tick and the launch, the batch is requested again within half a minute."""
    publish(stores.engine, 3)
    tick(instance, pipeline(stores))
    age(stores, seconds)

    assert len(tick(instance, pipeline(stores)).run_requests or []) == again


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING])
def test_a_run_that_has_not_begun_keeps_its_request(
    instance: dg.DagsterInstance, stores: Stores, status: dg.DagsterRunStatus
) -> None:
    """However long the queue is, or a machine takes to start it, a waiting run is not taken for silent."""
    publish(stores.engine, 3)
    requested_run(instance, stores, status)
    age(stores, 4000)
    end_lease(stores)

    assert not tick(instance, pipeline(stores)).run_requests

    with stores.engine.begin() as connection:
        waits = connection.scalar(text("SELECT lease_until > clock_timestamp() AND attempt = 1 FROM outbox.batch"))
    assert waits
