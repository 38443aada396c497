"""Resuming parked batches from the UI."""

from uuid import UUID, uuid4

import dagster as dg
import pytest
from sqlalchemy import text

from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.operations.resume import resume
from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.tick import plan_tick
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.moves import by_hand
from tests.fixtures.runs import EVER, execute, run_config


def cut_batch(stores: Stores, status: str) -> UUID:
    """Cut one batch of five events, give it a status and return its id."""
    publish(stores.engine, 5)
    if status == "processed":
        relay(stores, until_empty=True)
    plan_tick(stores.engine, stores.settings, days=EVER)
    statement = text("UPDATE outbox.batch SET status = :status, failures = 10, last_error = 'no table' RETURNING *")
    with stores.engine.begin() as connection:
        return UUID(str(by_hand(connection).execute(statement, {"status": status}).one().batch_id))


def run(instance: dg.DagsterInstance, **config: object) -> dg.ExecuteInProcessResult:
    """Run the job as its launchpad does."""
    job = build_definitions().resolve_job_def("resume_parked_batches")
    run_config = {"ops": {"resume_batches": {"config": config}}}
    return job.execute_in_process(instance=instance, run_config=run_config, raise_on_error=False)


def shown(result: dg.ExecuteInProcessResult) -> tuple[object, object]:
    """Return how many batches and events the job says it resumed."""
    (output,) = result.filter_events(lambda event: event.event_type_value == "STEP_OUTPUT")
    metadata = output.step_output_data.metadata
    return metadata["resumed"].value, metadata["events"].value


def failure(result: dg.ExecuteInProcessResult) -> str:
    """Return what the run failed with."""
    (event,) = result.filter_events(lambda event: event.is_step_failure)
    assert event.step_failure_data.user_failure_data is not None
    return event.step_failure_data.user_failure_data.description or ""


def test_a_parked_batch_is_delivered_after_the_job(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The job shows how much it freed; the next tick requests the batch and its run delivers it."""
    cut_batch(stores, "parked")
    assert plan_tick(stores.engine, stores.settings, days=EVER).requests == []

    job = build_definitions().resolve_job_def("resume_parked_batches")
    result = job.execute_in_process(instance=instance)
    (request,) = plan_tick(stores.engine, stores.settings, days=EVER).requests
    execute(instance, run_config(str(request.batch_id), request.attempt))

    assert shown(result) == (1, 5)
    assert_each_exactly_once(stores.engine, stores.client)


def test_the_job_tells_what_each_batch_was_parked_for(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The run's log has the last error of the batch that was named."""
    batch_id = cut_batch(stores, "parked")

    result = run(instance, batch_id=str(batch_id))

    assert shown(result) == (1, 5)
    logged = [entry.user_message for entry in instance.all_logs(result.run_id)]
    assert f"Batch {batch_id}, 5 events, was parked: no table" in logged


def test_the_job_without_parked_batches_resumes_none(instance: dg.DagsterInstance, stores: Stores) -> None:
    """As `outbox resume` does, it says 0 and is green."""
    cut_batch(stores, "failed")

    result = run(instance)

    assert result.success
    assert shown(result) == (0, 0)


@pytest.mark.parametrize("status", ["failed", "processed", None])
def test_the_job_says_of_a_batch_that_is_not_parked_what_the_command_says(
    instance: dg.DagsterInstance, stores: Stores, status: str | None
) -> None:
    """A batch that is tried again by itself, a processed one, an id of no batch: the run fails with that sentence."""
    batch_id = cut_batch(stores, status) if status else uuid4()

    result = run(instance, batch_id=str(batch_id))

    assert not result.success
    with pytest.raises(ConfigurationError) as caught:
        resume(stores.engine, batch_id, lock_timeout_seconds=5)
    assert failure(result) == str(caught.value)


def test_the_job_resumes_nothing_in_a_schema_of_another_version(instance: dg.DagsterInstance, stores: Stores) -> None:
    """A newer schema is left alone, in one sentence."""
    cut_batch(stores, "parked")
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.schema_version SET version_num = '9999'"))

    result = run(instance)

    assert "update outbox-pipeline" in failure(result)
    with stores.engine.begin() as connection:
        assert connection.scalar(text("SELECT status FROM outbox.batch")) == "parked"
