"""Bad events are quarantined, seen, and delivered after all: through Dagster's real processes."""

from typing import Any

from sqlalchemy import text

from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.stack import Running

LATEST = """
{ assetCheckExecutions(assetKey: {path: ["postgres", "outbox"]}, checkName: "quarantine_empty", limit: 1)
  { status evaluation { success severity description } } }
"""

LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on PythonError { message } }
}
"""


def latest_check(running: Running) -> dict[str, Any]:
    """Return what the asset's page shows of the check now."""
    executions = running.graphql(LATEST)["assetCheckExecutions"]
    return (executions[0]["evaluation"] or {}) if executions else {}


def launch(running: Running, job: str, config: dict[str, Any]) -> None:
    """Start a job as its launchpad does."""
    location = {"repositoryLocationName": "outbox_pipeline", "repositoryName": "__repository__"}
    params = {"selector": {**location, "pipelineName": job}, "runConfigData": config, "mode": "default"}
    launched = running.graphql(LAUNCH, {"params": params})["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched


def held_count(running: Running) -> int:
    """Return how many events are held."""
    with running.stores.engine.begin() as connection:
        return connection.scalar(text("SELECT count(*) FROM outbox.quarantined_event WHERE status = 'held'")) or 0


def test_held_events_turn_the_check_yellow_until_they_are_resolved(running: Running) -> None:
    """Nobody starts anything for the check; a job from the UI empties the quarantine and it turns green again."""
    publish(running.stores.engine, 2, context="[]")
    running.wait_for_delivery()
    running.wait(lambda: latest_check(running).get("success") is False, "the check to warn")
    seen = latest_check(running)

    choice = {"everything": True, "dry_run": False, "note": "acceptance"}
    launch(running, "discard_quarantined", {"ops": {"discard_held": {"config": choice}}})
    running.wait(lambda: held_count(running) == 0, "the job to discard what is held")
    running.wait(lambda: latest_check(running).get("success") is True, "the check to turn green")

    assert seen["severity"] == "WARN"
    assert "context_not_object" in seen["description"]
    assert_each_exactly_once(running.stores.engine, running.stores.client)
