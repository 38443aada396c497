"""What the UI shows of a healthy pipeline: green checks without runs, plots of the outbox, freshness that is kept."""

from typing import Any

import pytest

from outbox_pipeline.operations.quarantine import count_held, discard
from outbox_pipeline.orchestration.health import health_checks
from outbox_pipeline.processes import wait_until
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.settings import today
from tests.fixtures.events import publish
from tests.fixtures.stack import PATIENCE_SECONDS, Running

NODES = """query($day: String!) {
  event_log: assetNodeOrError(assetKey: {path: ["event_log"]}) { ... on AssetNode {
    staleStatus(partition: $day)
    partitionStats { numPartitions numMaterialized numFailed numMaterializing }
    partitionKeys } }
  outbox: assetNodeOrError(assetKey: {path: ["postgres", "outbox"]}) { ... on AssetNode {
    assetChecksOrError { ... on AssetChecks { checks {
      name executionForLatestMaterialization { status runId evaluation { success description } } } } }
    freshnessStatusInfo { freshnessStatus }
    assetObservations(limit: 1) { metadataEntries { label } } } }
}"""


def shown(running: Running) -> dict[str, Any]:
    """Return what the asset pages show."""
    return running.graphql(NODES, {"day": today().isoformat()})


def checks(running: Running) -> dict[str, dict[str, Any]]:
    """Return what the UI shows as the current result of each check of the outbox, by name."""
    found = shown(running)["outbox"]["assetChecksOrError"]["checks"]
    return {one["name"]: one["executionForLatestMaterialization"] or {} for one in found}


def missing_partitions(stats: dict[str, int]) -> int:
    """Return how many days the catalog calls missing; tomorrow is one, for a clock of PostgreSQL that is ahead."""
    return stats["numPartitions"] - stats["numMaterialized"] - stats["numFailed"] - stats["numMaterializing"]


@pytest.mark.timeout(600)
def test_a_healthy_pipeline_is_green_all_over(running: Running) -> None:
    """Without a run, the sensor makes every check green, the outbox plots and fresh, and leaves the days in sync.

    The days begin with the ledger's first, which the code server has asked for, so none before it is missing.
    """
    names = {"quarantine_empty", *(key.name for check in health_checks for key in check.check_keys)}
    if count_held(running.stores.engine).count:  # by another test of the session
        discard(running.stores.engine, Filter(), note="left by another test")
    publish(running.stores.engine, 5)
    running.wait_for_delivery()
    is_green = wait_until(
        lambda: {name for name, one in checks(running).items() if one.get("status") == "SUCCEEDED"} >= names,
        seconds=PATIENCE_SECONDS,
        pause=0.3,
    )
    assert is_green, checks(running)
    running.wait(
        lambda: (shown(running)["outbox"]["freshnessStatusInfo"] or {}).get("freshnessStatus") == "HEALTHY",
        "the outbox to be fresh",
    )
    publish(running.stores.engine, 5)
    running.wait_for_delivery()

    now = shown(running)
    assert {name: checks(running)[name]["runId"] for name in names} == dict.fromkeys(names, "")
    assert now["event_log"]["staleStatus"] == "FRESH"
    assert today().isoformat() in now["event_log"]["partitionKeys"]
    assert missing_partitions(now["event_log"]["partitionStats"]) <= 1
    labels = {entry["label"] for entry in now["outbox"]["assetObservations"][0]["metadataEntries"]}
    assert labels >= {"pending", "in_flight", "lag_seconds", "quarantined", "parked"}
