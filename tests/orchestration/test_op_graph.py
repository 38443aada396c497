"""The op graph: a requested batch, a whole day, a failure, and the re-execution of it."""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._utils.interrupts import capture_interrupts
from sqlalchemy import text

from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.errors import TransientError
from outbox_pipeline.orchestration.assets import EVENT_LOG
from outbox_pipeline.orchestration.delivery import run as runs
from outbox_pipeline.orchestration.delivery.steps import DELIVERED_WHOLE
from outbox_pipeline.orchestration.partitions import deliverable_days
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.owner import claim_table
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.relay.tick import plan_tick
from outbox_pipeline.settings import today
from outbox_pipeline.stores import Stores
from tests.fixtures.clock import shift
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.runs import EVER, batch_row, deliver_job, execute, requested, run_config
from tests.fixtures.snapshots import delivered_batches
from tests.fixtures.too_large import let_be_too_large


def test_events_in_dagsters_log_do_not_grow_with_the_batch(instance: dg.DagsterInstance, stores: Stores) -> None:
    """A run writes as many Dagster events for 5,000 delivered and refused events as for 10 of each."""
    counts = []
    for count in (10, 5_000):
        publish(stores.engine, count)
        publish(stores.engine, count, context="[]")
        run_id = execute(instance, requested(stores)).run_id
        counts.append(Counter(entry.dagster_event_type for entry in instance.all_logs(run_id)))

    assert counts[0] == counts[1]
    assert counts[0][dg.DagsterEventType.STEP_SUCCESS] == 4


def test_a_requested_batch_is_delivered(instance: dg.DagsterInstance, stores: Stores) -> None:
    """A run delivers its batch, proves it in a check and shows numbers that plot."""
    publish(stores.engine, 50)
    publish(stores.engine, 1, context="[]")

    result = execute(instance, requested(stores))

    assert result.success
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == (DELIVERED_WHOLE, True)
    event = instance.get_latest_materialization_event(EVENT_LOG)
    assert event is not None
    assert event.asset_materialization is not None
    shown = event.asset_materialization.metadata
    assert shown["rows_loaded"].value == 50
    assert shown["events_quarantined"].value == 1
    assert isinstance(shown["lag_seconds"].value, float)
    assert shown["dagster/partition_row_count"].value == 50
    summary = str(shown["summary"].value)
    assert "**50 events delivered and proved**, 1 refused" in summary
    assert "`order_placed` 50" in summary
    assert "`context_not_object` 1" in summary
    assert "attempt 1, generation 0" in summary
    assert "outbox quarantine list --batch" in summary
    assert batch_row(stores)[0] == "processed"
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_run_whose_attempt_is_over_does_nothing(instance: dg.DagsterInstance, stores: Stores) -> None:
    """A run that starts after the ledger has gone on fails with one sentence and sends nothing."""
    publish(stores.engine, 5)
    config = requested(stores)
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET attempt = 2"))

    result = execute(instance, config, raise_on_error=False)

    assert not result.success
    assert "attempt 2" in str(result.failure_data_for_node("event_log.extract_batch").user_failure_data)  # type: ignore[union-attr]
    assert stores.client.rows("SELECT count() AS n FROM {table:Identifier}") == [{"n": 0}]


def test_a_processed_batch_is_proved_again(instance: dg.DagsterInstance, stores: Stores) -> None:
    """Running a batch a second time proves it and changes nothing."""
    publish(stores.engine, 5)
    config = requested(stores)
    execute(instance, config)

    result = execute(instance, config)

    assert result.success
    assert batch_row(stores)[:2] == ("processed", 1)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_day_run_repairs_what_differs(instance: dg.DagsterInstance, stores: Stores) -> None:
    """Without batch id a run proves each batch of its day, and delivers the one that differs again."""
    delivered_batches(stores, (5,))
    publish(stores.engine, 7)
    relay(stores, until_empty=True)
    stores.client.run("DELETE FROM {table:Identifier} WHERE position = 3", settings={"mutations_sync": 2})

    result = execute(instance, run_config())

    (check,) = result.get_asset_check_evaluations()
    shown = check.metadata
    assert (shown["batches_proven"].value, shown["batches_redelivered"].value) == (1, 1)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_day_run_leaves_batches_in_flight_alone(instance: dg.DagsterInstance, stores: Stores) -> None:
    """A batch on its way is named, not touched."""
    publish(stores.engine, 5)
    requested(stores)

    result = execute(instance, run_config())

    (check,) = result.get_asset_check_evaluations()
    assert check.metadata["batches_left_alone"].value == 1
    assert batch_row(stores)[:2] == ("requested", 1)


@pytest.mark.parametrize(("days", "end"), [(400, 1), (-4000, 0)])
def test_a_day_run_takes_the_days_that_are_no_partition(
    instance: dg.DagsterInstance, stores: Stores, days: int, end: int
) -> None:
    """The first partition stands for all days before it and the last for all after it: delivered, proved, repaired."""
    publish(stores.engine, 5)
    cut_batches(stores.engine, stores.settings, limit=1)
    shift(stores.engine, days=days)
    partition = deliverable_days()[end].isoformat()

    delivered = execute(instance, requested(stores), day=partition)
    stores.client.run("DELETE FROM {table:Identifier} WHERE position = 3", settings={"mutations_sync": 2})
    repaired = execute(instance, run_config(), day=partition)
    own_day = execute(instance, run_config())

    assert delivered.success
    found = {check.check_name: check.metadata for check in repaired.get_asset_check_evaluations()}
    assert (found[DELIVERED_WHOLE]["batches"].value, found[DELIVERED_WHOLE]["batches_redelivered"].value) == (1, 1)
    (other,) = own_day.get_asset_check_evaluations()
    assert other.metadata["batches"].value == 0
    assert_each_exactly_once(stores.engine, stores.client)


def test_an_empty_day_succeeds(instance: dg.DagsterInstance, stores: Stores) -> None:
    """A day without events is whole: zero batches, zero rows."""
    result = execute(instance, run_config(), day="2026-02-03")

    (check,) = result.get_asset_check_evaluations()
    assert (check.passed, check.metadata["batches"].value, check.metadata["day_rows"].value) == (True, 0, 0)


def test_reload_sends_a_whole_day_again(instance: dg.DagsterInstance, stores: Stores) -> None:
    """With reload each batch gets a new generation, and nothing is doubled or swallowed by deduplication."""
    delivered_batches(stores, (5,))

    execute(instance, run_config(reload=True))

    generations = stores.client.rows("SELECT DISTINCT generation FROM {table:Identifier}")
    assert generations == [{"generation": 1}]
    assert_each_exactly_once(stores.engine, stores.client)


def test_re_execution_from_failure_marks_the_batch(
    instance: dg.DagsterInstance, stores: Stores, pipeline_environment: Path
) -> None:
    """With the failed run's files gone, re-executing from the failed step still ends with the batch marked."""
    publish(stores.engine, 5)
    config = requested(stores)
    claim_table(stores)
    stores.client.run("DROP TABLE {table:Identifier}")
    job = dg.reconstructable(deliver_job)
    first = dg.execute_job(
        job, instance, run_config=config, tags={"dagster/partition": today().isoformat()}, raise_on_error=False
    )
    assert not first.success
    assert batch_row(stores)[0] == "failed"
    shutil.rmtree(pipeline_environment / "storage", ignore_errors=True)
    create_table(stores.client)

    options = dg.ReexecutionOptions.from_failure(first.run_id, instance)
    second = dg.execute_job(
        job,
        instance,
        run_config=config,
        tags={"dagster/partition": today().isoformat()},
        reexecution_options=options,
    )

    ran = {event.step_key for event in second.filter_events(lambda event: event.is_step_success)}
    assert ran == {"event_log.load_batch", "event_log.mark_processed"}
    assert batch_row(stores)[:2] == ("processed", 2)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_failed_attempt_says_what_to_do(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The failure in the UI and the error in the ledger are one sentence with the next step."""
    publish(stores.engine, 5)
    config = requested(stores)
    claim_table(stores)
    stores.client.run("DROP TABLE {table:Identifier}")

    result = execute(instance, config, raise_on_error=False)

    assert not result.success
    assert "outbox init" in str(batch_row(stores)[2])


@pytest.mark.parametrize(
    ("batch_id", "hint"),
    [("not-a-uuid", "tag outbox/batch_id"), ("00000000-0000-0000-0000-000000000000", "outbox trace")],
)
def test_a_wrong_batch_id_is_named(instance: dg.DagsterInstance, stores: Stores, batch_id: str, hint: str) -> None:
    """A run started by hand for a batch that does not exist fails with a sentence."""
    result = execute(instance, run_config(batch_id), raise_on_error=False)

    assert not result.success
    assert hint in str(result.failure_data_for_node("event_log.extract_batch").user_failure_data)  # type: ignore[union-attr]


def test_a_batch_that_is_too_large_is_split_by_its_run(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The run says so and ends well, a repetition of it too; the next ticks ask for runs of the halves."""
    publish(stores.engine, 6)
    batch_id = let_be_too_large(stores)
    (request,) = plan_tick(stores.engine, stores.settings, days=EVER).requests

    split = execute(instance, run_config(str(batch_id), request.attempt))
    again = execute(instance, run_config(str(batch_id)))
    halves = []
    while requests := plan_tick(stores.engine, stores.settings, days=EVER).requests:
        halves += [execute(instance, run_config(str(each.batch_id), each.attempt)) for each in requests]
    day = execute(instance, run_config())

    event = split.asset_materializations_for_node("event_log")[0]
    assert event.metadata["rows_loaded"].value == 0
    assert "**Split.**" in str(event.metadata["summary"].value)
    assert (split.success, again.success, day.success) == (True, True, True)
    assert [half.success for half in halves] == [True, True]
    (check,) = [each for each in day.get_asset_check_evaluations() if each.check_name == DELIVERED_WHOLE]
    assert "**2 batches with 6 rows**: 2 proven." in str(check.metadata["summary"].value)
    assert_each_exactly_once(stores.engine, stores.client)


@pytest.mark.parametrize("place", [Point.EXTRACTED, Point.SENDING, Point.MARKING])
def test_a_run_that_is_terminated_stops(instance: dg.DagsterInstance, stores: Stores, place: Point) -> None:
    """Terminate, or a pod that is asked to end, ends the run as canceled; its step is not tried again."""
    publish(stores.engine, 3)
    config = requested(stores)

    def terminate(point: Point) -> None:
        if point == place:
            os.kill(os.getpid(), signal.SIGTERM)

    end = listen(terminate)
    try:
        with capture_interrupts(), pytest.raises(DagsterExecutionInterruptedError):
            execute(instance, config)
    finally:
        end()

    (run,) = instance.get_runs(limit=1)
    told = {entry.dagster_event_type for entry in instance.all_logs(run.run_id)}
    assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in told
    assert run.is_finished
    assert batch_row(stores)[:2] == ("delivering", 1)


@pytest.fixture
def waits_of_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is tried again at once, as often as ever."""
    monkeypatch.setattr(runs, "RETRIES", dg.RetryPolicy(max_retries=runs.RETRIES.max_retries))


@contextmanager
def trouble(place: Point, *, count: int) -> Iterator[list[Point]]:
    """Let the first *count* deliveries that reach *place* in the block fail there, as in an outage; yield those."""
    failed: list[Point] = []

    def fail(point: Point) -> None:
        if point == place and len(failed) < count:
            failed.append(point)
            raise TransientError("The database does not answer.")

    end = listen(fail)
    try:
        yield failed
    finally:
        end()


@pytest.mark.usefixtures("waits_of_no_time")
@pytest.mark.parametrize("place", [Point.EXTRACTED, Point.SENDING, Point.MARKING])
def test_trouble_that_passes_is_waited_out_in_the_run(
    instance: dg.DagsterInstance, stores: Stores, place: Point
) -> None:
    """A step is tried again after each of the first three errors of that kind, within the same attempt."""
    publish(stores.engine, 3)
    config = requested(stores)

    with trouble(place, count=3):
        result = execute(instance, config)

    told = Counter(entry.dagster_event_type for entry in instance.all_logs(result.run_id))
    assert told[dg.DagsterEventType.STEP_RESTARTED] == 3
    assert batch_row(stores)[:2] == ("processed", 1)
    assert_each_exactly_once(stores.engine, stores.client)


@pytest.mark.usefixtures("waits_of_no_time")
def test_trouble_that_stays_ends_the_attempt(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The fourth such error in a step fails the run, and the ledger has the reason."""
    publish(stores.engine, 3)
    config = requested(stores)

    with trouble(Point.SENDING, count=5) as failed:
        result = execute(instance, config, raise_on_error=False)

    assert len(failed) == 4
    assert not result.success
    assert batch_row(stores) == ("failed", 1, "The database does not answer.")
