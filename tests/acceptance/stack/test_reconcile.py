"""Reconciliation and repair through Dagster's real processes, as somebody at the UI does it."""

from typing import Any

from outbox_pipeline.settings import today
from tests.fixtures.broken_batches import OF_BATCH, change, copy_rows, loaded_rows, prune
from tests.fixtures.graphql import BACKFILL
from tests.fixtures.stack import Running

LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
}
"""

CHECKS = """
query Checks($partition: String!) {
  assetCheckExecutions(assetKey: {path: ["event_log"]}, checkName: "reconciled", limit: 100, partition: $partition) {
    status
    evaluation {
      severity description
      metadataEntries { label ... on IntMetadataEntry { intValue } ... on TableMetadataEntry { table { records } } }
    }
  }
}
"""

#: Positions that are no event's.
FAR = 9_000_000

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


def shown_in(check: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers and the rows of tables that an evaluation shows, by label."""
    entries = check["evaluation"]["metadataEntries"]
    return {one["label"]: one.get("intValue", (one.get("table") or {}).get("records")) for one in entries}


def test_broken_batches_are_seen_and_a_backfill_repairs_them(running: Running) -> None:
    """Four batches broken in four ways turn the day red with their numbers; a backfill repairs them and nothing else.

    What was pruned since is still compared: whole it is green, with rows missing it is red and named as pruned.
    """
    client = running.stores.client
    batches = running.deliver((50,) * 5)
    whole, missing, half, doubled, foreign = (one.batch_id for one in batches)
    first = batches[0].first_position
    change(client, f"DELETE FROM {{table:Identifier}} WHERE {OF_BATCH} AND position % 10 = 0", missing)
    change(client, f"DELETE FROM {{table:Identifier}} WHERE {OF_BATCH} AND position % 2 = 0", half)
    copy_rows(client, doubled, f"{OF_BATCH} AND position % 10 = 0")
    copy_rows(client, foreign, f"position BETWEEN {first} AND {first + 6}", replaced="{batch_id:UUID} AS batch_id")
    before = loaded_rows(client, whole)

    red = compare(running)
    backfill_today(running)
    green = evaluations(running)[0]
    prune(running.stores.engine, whole)
    still_green = compare(running)
    moved = f"ALTER TABLE {{table:Identifier}} UPDATE position = position + {FAR} WHERE {OF_BATCH}"
    change(client, f"{moved} AND position < {first + 3}", whole)
    pruned = compare(running)
    change(client, f"{moved.replace('+', '-')} AND position > {FAR}", whole)
    mended = compare(running)

    shown = shown_in(red)
    assert (red["status"], red["evaluation"]["severity"]) == ("FAILED", "ERROR")
    counted = [shown[f"rows_{name}"] for name in ("missing", "doubled", "misplaced")]
    assert (shown["batches_differing"], counted) == (4, [30, 5, 7])
    told = " ".join(shown["differing_batches"])
    assert [str(batch_id) in told for batch_id in (whole, missing, half, doubled, foreign)] == [False] + [True] * 4
    statuses = [check["status"] for check in (green, still_green, pruned, mended)]
    assert statuses == ["SUCCEEDED", "SUCCEEDED", "FAILED", "SUCCEEDED"]
    assert before == loaded_rows(client, whole)
    assert shown_in(pruned)["rows_missing"] == 3
    assert "pruned" in pruned["evaluation"]["description"]
    assert [len(loaded_rows(client, one.batch_id)) for one in batches] == [50] * 5
