"""The check `reconciled`: by itself for one day, and reported for many days by the job."""

from datetime import date, timedelta
from typing import Any

import dagster as dg
import pytest

from outbox_pipeline.batches import Batch
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.orchestration.assets import EVENT_LOG
from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.orchestration.reconcile import RECONCILED, ReconcileConfig
from outbox_pipeline.settings import today
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import (
    BREAKAGES,
    copy_to_unknown_batch,
    forget,
    healthy_rows,
    prune,
    read_all,
)
from tests.fixtures.events import publish
from tests.fixtures.runs import execute, run_config
from tests.fixtures.snapshots import delivered_batches


@pytest.fixture
def batches(stores: Stores) -> list[Batch]:
    """Three processed batches of 100 events each, today."""
    return delivered_batches(stores)


def run_job(instance: dg.DagsterInstance, **config: object) -> dg.ExecuteInProcessResult:
    """Run the job, which may fail."""
    job = build_definitions().resolve_job_def("reconcile_days")
    return job.execute_in_process(
        instance=instance, run_config={"ops": {"compare_days": {"config": config}}}, raise_on_error=False
    )


def failure(result: dg.ExecuteInProcessResult) -> str:
    """Return the sentence that the run failed with."""
    (failed,) = result.filter_events(lambda event: event.is_step_failure)
    described = failed.step_failure_data.user_failure_data
    return (described and described.description) or ""


def execute_all(instance: dg.DagsterInstance) -> dict[str | None, dg.AssetCheckEvaluation]:
    """Run the check as the button *Execute all* does, without a partition; returns what was reported, by day."""
    job = build_definitions().resolve_implicit_global_asset_job_def()
    chosen = job.get_subset(asset_selection=set(), asset_check_selection={dg.AssetCheckKey(EVENT_LOG, RECONCILED)})
    result = chosen.execute_in_process(instance=instance)
    return {check.partition: check for check in result.get_asset_check_evaluations()}


def compare(instance: dg.DagsterInstance, **config: object) -> dict[str, dg.AssetCheckEvaluation]:
    """Run the job over yesterday and today and return the evaluation of each day."""
    days = {"first_day": str(today() - timedelta(days=1)), "last_day": str(today())}
    result = run_job(instance, **days, **config)
    return {str(check.partition): check for check in result.get_asset_check_evaluations()}


def numbers(check: dg.AssetCheckEvaluation) -> dict[str, Any]:
    """Return what a check shows."""
    return {
        name: [record.data for record in value.records] if isinstance(value, dg.TableMetadataValue) else value.value
        for name, value in check.metadata.items()
    }


def test_the_job_reports_each_day(instance: dg.DagsterInstance, batches: list[Batch]) -> None:
    """One run evaluates the check of each of its days; a day without batches is green too."""
    checks = compare(instance, by_type=True)

    assert {day: check.passed for day, check in checks.items()} == {
        str(today() - timedelta(days=1)): True,
        str(today()): True,
    }
    assert numbers(checks[str(today())])["rows_found"] == 300


def test_a_broken_day_is_red_with_numbers(instance: dg.DagsterInstance, stores: Stores, batches: list[Batch]) -> None:
    """The check of the day that differs fails as an error and shows what which batch lacks; nothing is sent."""
    BREAKAGES["half a batch"].do(stores.client, batches[1].batch_id)

    checks = compare(instance)

    broken = checks[str(today())]
    shown = numbers(broken)
    assert (broken.passed, broken.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert (shown["batches_differing"], shown["rows_expected"], shown["rows_found"]) == (1, 300, 250)
    assert shown["rows_missing"] == 50
    assert [record["batch_id"] for record in shown["differing_batches"]] == [str(batches[1].batch_id)]
    assert "Materialize this day" in str(broken.description)
    assert checks[str(today() - timedelta(days=1))].passed
    assert [batch.generation for batch in read_all(stores.engine)] == [0, 0, 0]


def test_a_red_day_says_what_can_be_repaired_and_what_not(
    instance: dg.DagsterInstance, stores: Stores, batches: list[Batch]
) -> None:
    """Materializing is advised for batches that can be sent again; a pruned one needs a backup, repaired day or not."""
    prune(stores.engine, batches[0].batch_id)
    BREAKAGES["half a batch"].do(stores.client, batches[0].batch_id)
    BREAKAGES["half a batch"].do(stores.client, batches[1].batch_id)

    both = str(compare(instance)[str(today())].description)
    only_pruned = compare(instance, repair=True)[str(today())]
    once_more = compare(instance)[str(today())]

    assert "Materialize this day" in both
    for check in (only_pruned, once_more):
        assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
        assert "Materialize this day" not in str(check.description)
    for description in (both, only_pruned.description, once_more.description):
        assert "1 cannot be sent again" in str(description)
        assert "restore their rows in ClickHouse from a backup" in str(description)


def test_the_result_of_a_delivered_day_counts_as_its_latest(
    instance: dg.DagsterInstance, stores: Stores, batches: list[Batch]
) -> None:
    """A day that runs have materialized is shown as red, and not as missing, by the job's result."""
    day = str(today())
    instance.report_runless_asset_event(dg.AssetMaterialization(EVENT_LOG, partition=day))
    BREAKAGES["half a batch"].do(stores.client, batches[1].batch_id)

    compare(instance)

    key = dg.AssetCheckKey(EVENT_LOG, RECONCILED)
    found = instance.event_log_storage.get_asset_check_partition_info([key], partition_keys=[day])
    assert [(info.is_current, info.latest_execution_status.value) for info in found] == [(True, "FAILED")]


def test_the_job_repairs_when_told(instance: dg.DagsterInstance, stores: Stores, batches: list[Batch]) -> None:
    """With repair the differing batch is delivered again, untracked events are put back, and the check is green."""
    before = healthy_rows(stores.client, batches[1].batch_id)
    BREAKAGES["doubled rows"].do(stores.client, batches[1].batch_id)
    publish(stores.engine, 2)
    forget(stores.engine, "{[301,303)}")

    check = compare(instance, repair=True)[str(today())]

    assert check.passed
    assert numbers(check)["differing_batches"][0]["repair"] == "redelivered"
    assert numbers(check)["events_in_no_place"] == 2
    assert healthy_rows(stores.client, batches[1].batch_id) == before
    again = compare(instance, repair=True)[str(today())]
    assert (again.passed, numbers(again)["batches_differing"]) == (True, 0)


def test_a_run_that_finds_broken_batches_fails_with_the_sentence(
    instance: dg.DagsterInstance, stores: Stores, batches: list[Batch]
) -> None:
    """Its numbers stay with it; a run that has repaired all of it succeeds."""
    BREAKAGES["half a batch"].do(stores.client, batches[1].batch_id)
    day = {"first_day": str(today()), "last_day": str(today())}

    broken, repaired, whole = (run_job(instance, repair=repair, **day) for repair in (False, True, False))

    assert [result.success for result in (broken, repaired, whole)] == [False, True, True]
    assert failure(broken).startswith(f"{today()}: 1 of 3 batches differ")
    assert "Materialize this day" in failure(broken)
    (step,) = broken.filter_events(lambda event: event.is_step_failure)
    assert step.step_failure_data.user_failure_data.metadata["batches_differing"].value == 1


def test_days_that_differ_are_reported_last(instance: dg.DagsterInstance, stores: Stores, batches: list[Batch]) -> None:
    """Alerts read the latest results, fewer than the days that may be compared, and this run's failure is not told."""
    BREAKAGES["half a batch"].do(stores.client, batches[1].batch_id)
    days = {"first_day": str(today()), "last_day": str(today() + timedelta(days=1))}

    reported = [(check.partition, check.passed) for check in run_job(instance, **days).get_asset_check_evaluations()]

    assert reported == [(days["last_day"], True), (days["first_day"], False)]


def test_execute_all_compares_today_and_yesterday(
    instance: dg.DagsterInstance, stores: Stores, batches: list[Batch]
) -> None:
    """The check's own button needs no day: it passes, or fails with a text, and each of both days has its result."""
    yesterday, day = str(today() - timedelta(days=1)), str(today())
    green = execute_all(instance)
    BREAKAGES["half a batch"].do(stores.client, batches[1].batch_id)
    red = execute_all(instance)

    assert {partition: check.passed for partition, check in green.items()} == {None: True, yesterday: True, day: True}
    assert {partition: check.passed for partition, check in red.items()} == {None: False, yesterday: True, day: False}
    assert f"{day}: 1 of 3 batches differ" in str(red[None].description)
    assert red[None].severity == dg.AssetCheckSeverity.ERROR
    assert numbers(red[None])["rows_found"] == 250


def test_on_the_first_day_that_day_is_compared(
    instance: dg.DagsterInstance, stores: Stores, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison of days before the outbox began would compare nothing and look well."""
    monkeypatch.setenv("OUTBOX_FIRST_DAY", str(today()))

    window = ReconcileConfig().window()

    assert (window.first_day, window.last_day) == (today(), today())
    assert set(execute_all(instance)) == {None, str(today())}


def test_rows_of_unknown_batches_are_a_warning(
    instance: dg.DagsterInstance, stores: Stores, batches: list[Batch]
) -> None:
    """The ledger's rows are all there, so the check is yellow and not red."""
    copy_to_unknown_batch(stores.client, positions=(1, 3))

    check = compare(instance)[str(today())]

    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert numbers(check)["rows_of_unknown_batches"] == 3


def test_rows_of_no_day_are_shown_on_the_newest(
    instance: dg.DagsterInstance, stores: Stores, batches: list[Batch]
) -> None:
    """Rows that somebody inserted with the five columns of an event only have no day of ours; they are not hidden."""
    stores.client.run(
        "INSERT INTO {table:Identifier} (event_type, event_date_time, environment, event_context, metadata_version)"
        " VALUES ('by_hand', now(), 'x', '{}', 1)"
    )

    assert numbers(compare(instance)[str(today())])["rows_of_unknown_batches"] == 1


def test_a_day_run_repairs_what_it_must_and_says_what_it_cannot(
    instance: dg.DagsterInstance, stores: Stores, batches: list[Batch]
) -> None:
    """A batch with rows far from its positions is repaired, a pruned one that differs is named and fails the check."""
    BREAKAGES["a foreign row far away"].do(stores.client, batches[1].batch_id)
    repaired = execute(instance, run_config())
    prune(stores.engine, batches[1].batch_id)
    pruned = execute(instance, run_config(reload=True))
    BREAKAGES["missing rows"].do(stores.client, batches[1].batch_id)
    refused = execute(instance, run_config(), raise_on_error=False)

    shown = [numbers(result.get_asset_check_evaluations()[0]) for result in (repaired, pruned, refused)]
    assert (shown[0]["batches_redelivered"], shown[0]["batches_proven"]) == (1, 2)
    assert (shown[1]["batches_redelivered"], shown[1]["batches_proven"]) == (2, 1)
    assert (shown[2]["batches_pruned"], refused.success) == (1, False)


def test_a_run_for_a_day_ends_with_its_check(
    instance: dg.DagsterInstance, stores: Stores, batches: list[Batch]
) -> None:
    """Materializing a day from the UI takes the asset's checks along: `reconciled` looks after what was repaired."""
    BREAKAGES["missing rows"].do(stores.client, batches[1].batch_id)
    job = dg.define_asset_job("as_the_ui_does", selection=dg.AssetSelection.assets(EVENT_LOG))
    merged = dg.Definitions.merge(build_definitions(), dg.Definitions(jobs=[job]))

    result = merged.resolve_job_def("as_the_ui_does").execute_in_process(instance=instance, partition_key=str(today()))

    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert (checks[RECONCILED].partition, checks[RECONCILED].passed) == (str(today()), True)
    assert checks["delivered_whole"].metadata["batches_redelivered"].value == 1


def test_days_are_chosen_by_the_setting(pipeline_environment: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without days it is the last OUTBOX_RECONCILE_DAYS before today; never a day without a partition."""
    monkeypatch.setenv("OUTBOX_RECONCILE_DAYS", "3")

    window = ReconcileConfig().window()
    clipped = ReconcileConfig(first_day="2020-01-01", last_day="2199-01-01").window()

    assert (window.first_day, window.last_day) == (today() - timedelta(days=3), today() - timedelta(days=1))
    assert (clipped.first_day, clipped.last_day) == (date(2026, 1, 1), today() + timedelta(days=1))


@pytest.mark.parametrize(
    ("first_day", "last_day"), [("2026-03-02", "2026-03-01"), ("2019-01-01", "2019-12-31"), ("2199-01-01", "")]
)
@pytest.mark.usefixtures("pipeline_environment")
def test_a_comparison_of_no_days_is_refused(first_day: str, last_day: str) -> None:
    """Days in the wrong order, or without a partition, would compare nothing and end green."""
    with pytest.raises(ConfigurationError, match="nothing would be compared"):
        ReconcileConfig(first_day=first_day, last_day=last_day).window()


@pytest.mark.parametrize(
    ("first_day", "last_day", "said"),
    [
        ("sekret", "", "What is given as first_day is no day"),
        ("", "0001-01-01", "nothing would be compared"),
        ("2026-03-02", "2026-03-01", "nothing would be compared"),
    ],
)
def test_days_that_cannot_be_meant_fail_the_run_with_one_sentence(
    instance: dg.DagsterInstance, stores: Stores, first_day: str, last_day: str, said: str
) -> None:
    """The step's failure is that sentence, and quotes no word of the config."""
    result = (
        build_definitions()
        .resolve_job_def("reconcile_days")
        .execute_in_process(
            instance=instance,
            run_config={"ops": {"compare_days": {"config": {"first_day": first_day, "last_day": last_day}}}},
            raise_on_error=False,
        )
    )

    (failed,) = result.filter_events(lambda event: event.is_step_failure)
    described = failed.step_failure_data.user_failure_data
    assert described is not None
    assert said in (described.description or "")
    assert "sekret" not in (described.description or "")
