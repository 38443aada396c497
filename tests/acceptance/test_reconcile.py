"""Reconciliation and repair through Dagster's real processes, as somebody at the UI does it."""

from typing import Any
from uuid import UUID

from sqlalchemy import text

from outbox_pipeline.settings import today
from tests.acceptance.test_dagster_delivers import BACKFILL
from tests.fixtures.breakage import change, healthy_rows
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.stack import Running

LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}
"""

CHECKS = """
query Checks($partition: String!) {
  assetCheckExecutions(assetKey: {path: ["event_log"]}, checkName: "reconciled", limit: 5, partition: $partition) {
    status
    evaluation {
      severity description
      metadataEntries { label ... on IntMetadataEntry { intValue } ... on TableMetadataEntry { table { records } } }
    }
  }
}
"""

RUNS = """
query Runs($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results { runId status } } } }
"""


def evaluations(running: Running) -> list[dict[str, Any]]:
    """Return what the check page of today shows, latest first."""
    executions = running.graphql(CHECKS, {"partition": str(today())})["assetCheckExecutions"]
    return [execution for execution in executions if execution["evaluation"] is not None]


def compare(running: Running) -> dict[str, Any]:
    """Launch the job for today as the launchpad does and return the check it reports."""
    before = len(evaluations(running))
    config = {"ops": {"compare_days": {"config": {"first_day": str(today()), "last_day": str(today())}}}}
    params = {
        "selector": {
            "repositoryLocationName": "outbox_pipeline",
            "repositoryName": "__repository__",
            "jobName": "reconcile_days",
        },
        "runConfigData": config,
    }
    launched = running.graphql(LAUNCH, {"params": params})["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    running.wait(lambda: len(evaluations(running)) > before, "the job to report the check")
    return evaluations(running)[0]


def backfill_today(running: Running) -> None:
    """Materialize today as the backfill dialog does, and wait until its run has ended well."""
    params = {"assetSelection": [{"path": ["event_log"]}], "partitionNames": [str(today())]}
    launched = running.graphql(BACKFILL, {"params": params})["launchPartitionBackfill"]
    tags = [{"key": "dagster/backfill", "value": launched["backfillId"]}]

    def is_done() -> bool:
        runs = running.graphql(RUNS, {"filter": {"tags": tags}})["runsOrError"]["results"]
        assert "FAILURE" not in [run["status"] for run in runs]
        return bool(runs) and all(run["status"] == "SUCCESS" for run in runs)

    running.wait(is_done, "the backfill to succeed")


def latest_batch(running: Running) -> UUID:
    """Return the batch that was cut last."""
    with running.stores.engine.begin() as connection:
        batch_id = connection.scalar(text("SELECT batch_id FROM outbox.batch ORDER BY cut_at DESC LIMIT 1"))
    assert isinstance(batch_id, UUID)
    return batch_id


def test_a_broken_batch_is_seen_and_a_backfill_repairs_it(running: Running) -> None:
    """The day's check turns red with numbers; materializing the day turns it green and touches nothing else."""
    for _ in range(2):
        publish(running.stores.engine, 60)
        running.wait_for_delivery()
    broken = latest_batch(running)
    change(
        running.stores.client,
        "DELETE FROM {table:Identifier} WHERE batch_id = {batch_id:UUID} AND position % 2 = 0",
        broken,
    )
    healthy = healthy_rows(running.stores.client, broken)

    red = compare(running)
    backfill_today(running)
    green = evaluations(running)[0]

    assert (red["status"], red["evaluation"]["severity"]) == ("FAILED", "ERROR")
    shown = {entry["label"]: entry for entry in red["evaluation"]["metadataEntries"]}
    assert (shown["batches_differing"]["intValue"], shown["rows_missing"]["intValue"]) == (1, 30)
    assert str(broken) in shown["differing_batches"]["table"]["records"][0]
    assert green["status"] == "SUCCEEDED"
    assert healthy_rows(running.stores.client, broken) == healthy
    assert_each_exactly_once(running.stores.engine, running.stores.client)
