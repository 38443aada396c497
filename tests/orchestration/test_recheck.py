"""The second look at batches that took more than one attempt."""

import dagster as dg
import pytest
from sqlalchemy import text

from outbox_pipeline.operations.replay import rechecks_due
from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.relay.tick import plan_tick
from outbox_pipeline.stores import Stores
from tests.fixtures.clock import shift
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.runs import EVER, execute, run_config


@pytest.fixture
def retried(instance: dg.DagsterInstance, stores: Stores) -> Stores:
    """Two batches marked an hour ago; the second took a second attempt."""
    for attempts in (1, 2):
        publish(stores.engine, 7)
        for _ in range(attempts):
            (request,) = plan_tick(stores.engine, stores.settings, days=EVER).requests
            with stores.engine.begin() as connection:
                connection.execute(text("UPDATE outbox.batch SET lease_until = now() WHERE status = 'requested'"))
        execute(instance, run_config(str(request.batch_id), request.attempt))
    _age(stores, hours=1)
    return stores


def _age(stores: Stores, *, hours: int) -> None:
    statement = (
        "UPDATE outbox.batch SET processed_at = processed_at - make_interval(hours => :hours),"
        " proved_at = proved_at - make_interval(hours => :hours)"
    )
    with stores.engine.begin() as connection:
        connection.execute(text(statement), {"hours": hours})


def tick(instance: dg.DagsterInstance) -> dg.SensorResult:
    """Evaluate recheck_sensor once, as the daemon does."""
    definitions = build_definitions()
    resources = {"pipeline": definitions.resources["pipeline"]}  # type: ignore[index]
    with dg.build_sensor_context(instance=instance, definitions=definitions, resources=resources) as context:
        return definitions.resolve_sensor_def("recheck_sensor").evaluate_tick(context)  # type: ignore[return-value]


def test_only_a_batch_of_several_attempts_is_due(instance: dg.DagsterInstance, retried: Stores) -> None:
    """A batch of one attempt, and one marked a moment ago, are not looked at again; the sensor asks for one run."""
    (due,) = rechecks_due(retried)
    asked = [request.run_key for request in tick(instance).run_requests or []]

    assert due.attempt == 2
    assert len(asked) == 1
    assert str(asked[0]).startswith(f"{due.batch_id}:2:")


def test_a_late_change_is_found_and_repaired(instance: dg.DagsterInstance, retried: Stores) -> None:
    """Rows that vanished after the mark are sent again; then nothing is due, and the sensor says so."""
    (due,) = rechecks_due(retried)
    retried.client.run(
        "DELETE FROM {table:Identifier} WHERE batch_id = {batch_id:UUID} AND position % 2 = 0",
        {"batch_id": str(due.batch_id)},
        settings={"lightweight_deletes_sync": 2},
    )

    result = build_definitions().resolve_job_def("recheck_batches").execute_in_process(instance=instance)

    (output,) = result.filter_events(lambda event: event.event_type_value == "STEP_OUTPUT")
    shown = output.step_output_data.metadata
    assert (shown["batches"].value, shown["batches_redelivered"].value) == (1, 1)
    assert_each_exactly_once(retried.engine, retried.client)
    _age(retried, hours=0)
    assert rechecks_due(retried) == []
    assert "No batch is due" in str(tick(instance).skip_message)  # type: ignore[attr-defined]


def test_a_batch_is_looked_at_twice_and_not_for_ever(instance: dg.DagsterInstance, retried: Stores) -> None:
    """A batch that is whole is left as it is, and its second look is its last."""
    build_definitions().resolve_job_def("recheck_batches").execute_in_process(instance=instance)

    assert rechecks_due(retried) == []
    assert_each_exactly_once(retried.engine, retried.client)


def test_a_mark_in_the_future_is_looked_at_once(instance: dg.DagsterInstance, retried: Stores) -> None:
    """A batch that was marked under a clock that was ahead does not wait for its second look until that time."""
    shift(retried.engine, days=400)
    due = rechecks_due(retried)
    build_definitions().resolve_job_def("recheck_batches").execute_in_process(instance=instance)

    assert [batch.attempt for batch in due] == [2]
    assert rechecks_due(retried) == []
