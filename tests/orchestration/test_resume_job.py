"""Resuming parked batches from the UI."""

import dagster as dg
from sqlalchemy import text

from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.relay.tick import plan_tick
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.orchestration.test_op_graph import EVER, execute, run_config


def test_a_parked_batch_is_delivered_after_the_job(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The job shows how much it freed; the next tick requests the batch and its run delivers it."""
    publish(stores.engine, 5)
    plan_tick(stores.engine, stores.settings, days=EVER)
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET status = 'parked', failures = 10, last_error = 'no table'"))
    assert plan_tick(stores.engine, stores.settings, days=EVER).requests == []

    job = build_definitions().resolve_job_def("resume_parked_batches")
    result = job.execute_in_process(instance=instance)
    (request,) = plan_tick(stores.engine, stores.settings, days=EVER).requests
    execute(instance, run_config(str(request.batch_id), request.attempt))

    (output,) = result.filter_events(lambda event: event.event_type_value == "STEP_OUTPUT")
    shown = output.step_output_data.metadata
    assert (shown["resumed"].value, shown["events"].value) == (1, 5)
    assert_each_exactly_once(stores.engine, stores.client)
