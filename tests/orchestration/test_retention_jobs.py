"""The jobs that keep both databases small, on Dagster's real storage in PostgreSQL."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from sqlalchemy import create_engine, text

from outbox_pipeline.orchestration.assets import EVENT_LOG
from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.orchestration.delivery.steps import DELIVERED_WHOLE
from outbox_pipeline.orchestration.host.history import LOCATION_TAG, OWN_LOCATION, PURGED_TYPES, purge_history
from outbox_pipeline.orchestration.host.instance import DEFINITIONS_MODULE
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import today
from outbox_pipeline.stores import Stores
from tests.fixtures.events import committed_ids, publish
from tests.fixtures.runs import deliver_job, requested
from tests.fixtures.snapshots import delivered_batches

ROOT = Path(__file__).parents[2]

_AGE = "UPDATE outbox.batch SET processed_at = processed_at - interval '20 days', oldest_recorded_at = '2026-01-01'"


def age(stores: Stores) -> None:
    """Let all batches have been delivered long ago."""
    with stores.engine.begin() as connection:
        connection.execute(text(_AGE))


def run_job(instance: dg.DagsterInstance, name: str, **options: object) -> dg.ExecuteInProcessResult:
    """Run a job in this process."""
    job = build_definitions().resolve_job_def(name)
    return job.execute_in_process(instance=instance, raise_on_error=False, **options)  # type: ignore[arg-type]


def shown(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    """Return what the run's only op shows."""
    (output,) = result.filter_events(lambda event: event.event_type_value == "STEP_OUTPUT")
    return {name: value.value for name, value in output.step_output_data.metadata.items()}


def test_the_job_prunes_and_shows_what_it_did(instance: dg.DagsterInstance, stores: Stores) -> None:
    """A run of prune_outbox deletes old delivered events and shows counts; a dry run only shows them."""
    delivered_batches(stores, (6,))
    age(stores)

    dry = run_job(instance, "prune_outbox", run_config={"ops": {"prune_delivered": {"config": {"dry_run": True}}}})
    assert len(committed_ids(stores.engine)) == 6
    done = run_job(instance, "prune_outbox")

    assert (shown(dry)["events_pruned"], shown(dry)["is_dry_run"]) == (6, True)
    assert (shown(done)["events_pruned"], shown(done)["batches_pruned"]) == (6, 1)
    assert committed_ids(stores.engine) == set()


def test_a_batch_that_differs_fails_the_run_and_keeps_its_events(instance: dg.DagsterInstance, stores: Stores) -> None:
    """The failure names the day to prove; other batches were pruned before it."""
    for count in (5, 3):
        publish(stores.engine, count)
        relay(stores, until_empty=True)
    age(stores)
    stores.client.run("DELETE FROM {table:Identifier} WHERE position = 1", settings={"mutations_sync": 2})

    result = run_job(instance, "prune_outbox")

    (failure,) = result.filter_events(lambda event: event.event_type_value == "STEP_FAILURE")
    assert not result.success
    assert f"prove the day {today()}" in str(failure.step_failure_data.user_failure_data.description)
    assert len(committed_ids(stores.engine)) == 5


def test_a_prune_waits_while_clickhouse_is_away(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage is not the prune's alarm: its run ends, says why, and nothing was deleted."""
    delivered_batches(stores, (2,))
    age(stores)
    monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", "http://127.0.0.1:1/default")

    result = run_job(instance, "prune_outbox")

    assert result.success
    assert "cannot be reached" in str(shown(result)["not_now"])
    assert len(committed_ids(stores.engine)) == 2


def deliver_by_run(instance: dg.DagsterInstance, stores: Stores, *, key: str, location: str = OWN_LOCATION) -> str:
    """Deliver one event by a run with this run key and return the run's id."""
    publish(stores.engine, 1)
    result = deliver_job().execute_in_process(
        instance=instance,
        run_config=requested(stores),
        partition_key=today().isoformat(),
        tags={LOCATION_TAG: location, "dagster/run_key": key},
    )
    return result.run_id


def event_types(instance: dg.DagsterInstance, run_id: str) -> set[str]:
    """Return the types of events the instance has of a run; log lines have the type of an empty word."""
    records = instance.all_logs(run_id)
    return {record.dagster_event.event_type_value if record.dagster_event else "" for record in records}


def check_history(instance: dg.DagsterInstance) -> list[tuple[int, str, object]]:
    """Return what the page of the check delivered_whole lists."""
    records = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(EVENT_LOG, DELIVERED_WHOLE), limit=20
    )
    return [(record.id, record.status.value, record.event) for record in records]


@pytest.fixture
def aged_runs(instance: dg.DagsterInstance, stores: Stores, dagster_url: str) -> list[str]:
    """Three runs of 20 days ago, of which one belongs to another code location, and a young one."""
    old = [deliver_by_run(instance, stores, key=f"{uuid4()}:1") for _ in range(2)]
    foreign = deliver_by_run(instance, stores, key="foreign", location="__repository__@elsewhere")
    engine = create_engine(dagster_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE event_logs SET timestamp = timestamp - interval '20 days'"))
    engine.dispose()
    return [*old, foreign, deliver_by_run(instance, stores, key="young")]


def test_old_step_events_go_and_what_people_look_at_stays(instance: dg.DagsterInstance, aged_runs: list[str]) -> None:
    """After a purge runs, keys, status, materializations with their numbers, checks and partitions are as before."""
    old, _, foreign, young = aged_runs
    before = {run_id: event_types(instance, run_id) for run_id in aged_runs}
    points = instance.fetch_materializations(EVENT_LOG, limit=10).records
    stats = instance.get_run_stats(old)
    checked = check_history(instance)
    days = instance.get_materialized_partitions(EVENT_LOG)

    done = purge_history(instance, days=14, seconds=60)

    after = {run_id: event_types(instance, run_id) for run_id in aged_runs}
    assert done.runs >= 2
    assert {"STEP_OUTPUT", "STEP_SUCCESS", "ENGINE_EVENT", "LOGS_CAPTURED"} <= before[old]
    assert after[old] == before[old] - {*PURGED_TYPES, ""}
    assert {"PIPELINE_SUCCESS", "ASSET_MATERIALIZATION", "ASSET_CHECK_EVALUATION"} <= after[old]
    assert (after[foreign], after[young]) == (before[foreign], before[young])
    assert instance.fetch_materializations(EVENT_LOG, limit=10).records == points
    kept = instance.get_run_stats(old)
    assert (kept.start_time, kept.end_time, kept.materializations) == (stats.start_time, stats.end_time, 1)
    assert {step.status for step in instance.get_run_step_stats(old)} == {None}
    assert check_history(instance) == checked
    assert today().isoformat() in days
    assert instance.get_materialized_partitions(EVENT_LOG) == days
    assert purge_history(instance, days=14, seconds=60).events == 0


def test_a_purged_run_keeps_its_key(instance: dg.DagsterInstance, aged_runs: list[str]) -> None:
    """The run of a run key is still found after a purge, which is what keeps it from being launched twice."""
    (key,) = [run.tags["dagster/run_key"] for run in instance.get_runs(dg.RunsFilter(run_ids=aged_runs[:1]))]

    purge_history(instance, days=14, seconds=60)

    (found,) = instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": key}))
    assert (found.run_id, found.status) == (aged_runs[0], dg.DagsterRunStatus.SUCCESS)


def test_captured_output_of_old_runs_goes(instance: dg.DagsterInstance, aged_runs: list[str]) -> None:
    """The files of stdout and stderr are removed with the events that point to them."""
    folder = Path(instance.storage_directory())
    assert (folder / aged_runs[0]).exists()

    purge_history(instance, days=14, seconds=60)

    assert not (folder / aged_runs[0]).exists()
    assert (folder / aged_runs[-1]).exists()


def test_a_run_that_is_not_finished_keeps_its_events(instance: dg.DagsterInstance, aged_runs: list[str]) -> None:
    """What still works, or hangs, is not purged under somebody's eyes."""
    instance.run_storage.handle_run_event(
        aged_runs[0],
        dg.DagsterEvent(event_type_value="PIPELINE_START", job_name="deliver_batch"),  # type: ignore[call-arg]
    )
    before = event_types(instance, aged_runs[0])

    purge_history(instance, days=14, seconds=60)

    assert event_types(instance, aged_runs[0]) == before


def test_without_a_limit_the_history_is_kept(instance: dg.DagsterInstance, aged_runs: list[str]) -> None:
    """OUTBOX_DAGSTER_HISTORY_DAYS=0 purges nothing."""
    assert purge_history(instance, days=0, seconds=60).events == 0
    assert "STEP_OUTPUT" in event_types(instance, aged_runs[0])


def test_the_purge_job_shows_what_it_did(instance: dg.DagsterInstance, aged_runs: list[str]) -> None:
    """A run of prune_dagster_history purges with the default of 14 days."""
    result = run_job(instance, "prune_dagster_history")

    assert (shown(result)["history_days"], shown(result)["is_finished"]) == (14, True)
    assert "STEP_OUTPUT" not in event_types(instance, aged_runs[0])


def test_pages_of_purged_runs_load(instance: dg.DagsterInstance, aged_runs: list[str]) -> None:
    """What the UI asks for the page of a run and for the asset's plots is answered as for any other run."""
    purge_history(instance, days=14, seconds=60)

    found = ask_graphql(_PAGES, {"runId": aged_runs[0]})

    run = found["runOrError"]
    assert (run["status"], run["eventConnection"]["hasMore"]) == ("SUCCESS", False)
    assert run["stats"]["endTime"] > run["stats"]["startTime"]
    assert "RunSuccessEvent" in {event["__typename"] for event in run["eventConnection"]["events"]}
    points = [point for point in found["assetOrError"]["assetMaterializations"] if point["runId"] == aged_runs[0]]
    assert "rows_loaded" in {entry["label"] for entry in points[0]["metadataEntries"]}


_DAGSTER_GRAPHQL = "from dagster_graphql.cli import main; main()"

_PAGES = """
query Pages($runId: ID!) {
  runOrError(runId: $runId) {
    __typename
    ... on Run {
      status
      stats { ... on RunStatsSnapshot { startTime endTime stepsFailed materializations } }
      stepStats { stepKey status startTime endTime attempts { startTime } markers { startTime } }
      eventConnection { hasMore events { __typename } }
      assetMaterializations { assetKey { path } }
    }
  }
  assetOrError(assetKey: {path: ["event_log"]}) {
    ... on Asset { assetMaterializations(limit: 20) { runId metadataEntries { label } } }
  }
}
"""


def ask_graphql(query: str, variables: dict[str, str]) -> dict[str, Any]:
    """Ask Dagster's GraphQL, as the UI does, in a process that has loaded this code location."""
    command = [sys.executable, "-c", _DAGSTER_GRAPHQL, "-m", DEFINITIONS_MODULE, "-t", query]
    done = subprocess.run([*command, "-v", json.dumps(variables)], cwd=ROOT, capture_output=True, text=True, check=True)
    # The code server of that process logs to stdout as well.
    answer = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"')))
    assert "errors" not in answer, answer
    data: dict[str, Any] = answer["data"]
    return data
