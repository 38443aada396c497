"""Delivery through Dagster's real processes: sensor daemon, run queue, run workers, and what the UI can start."""

import json
import os
import signal
from datetime import date, timedelta
from typing import Any

from outbox_pipeline.settings import today
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.graphql import BACKFILL, checks
from tests.fixtures.stack import Running

RESOURCES = """
{ allTopLevelResourceDetailsOrError(repositorySelector: {
    repositoryLocationName: "outbox_pipeline", repositoryName: "__repository__"}) {
  __typename ... on ResourceDetailsList { results { name description configuredValues { key value type } } } } }
"""


def backfill(running: Running, days: list[date]) -> None:
    """Materialize past days as the backfill dialog does, and wait until each day was checked once more."""
    before = {day: len(checks(running, day)) for day in days}
    params = {
        "assetSelection": [{"path": ["event_log"]}],
        "partitionNames": [day.isoformat() for day in days],
    }
    launched = running.graphql(BACKFILL, {"params": params})["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    for day in days:
        running.wait(lambda day=day: len(checks(running, day)) > before[day], f"the backfill to check {day}")


def latest_check(running: Running, day: date) -> dict[str, Any]:
    """Return the numbers the latest check of a day shows."""
    latest = checks(running, day)[0]
    numbers = {entry["label"]: entry.get("intValue") for entry in latest["evaluation"]["metadataEntries"]}
    return {"status": latest["status"], **numbers}


def test_published_events_arrive_by_themselves(running: Running) -> None:
    """With the sensor running nobody starts anything: events published are processed, bad ones are held."""
    publish(running.stores.engine, 500)
    publish(running.stores.engine, 2, context="[]")

    running.wait_for_delivery()

    assert_each_exactly_once(running.stores.engine, running.stores.client)


def test_a_backfill_proves_and_repairs_days(running: Running) -> None:
    """Materializing days from the backfill page repairs the one that differs; an empty day is green too."""
    publish(running.stores.engine, 50)
    running.wait_for_delivery()
    running.stores.client.run(
        "DELETE FROM {table:Identifier} WHERE position = (SELECT max(position) FROM {table:Identifier})",
        settings={"mutations_sync": 2},
    )
    # Before the ledger's first day there is none; tomorrow is there for a clock that is ahead.
    empty_day = today() + timedelta(days=1)

    backfill(running, [empty_day, today()])

    assert_each_exactly_once(running.stores.engine, running.stores.client)
    assert latest_check(running, empty_day)["batches"] == 0
    repaired = latest_check(running, today())
    assert repaired["status"] == "SUCCEEDED"
    assert repaired["batches_redelivered"] == 1


def test_the_ui_shows_names_of_secrets_not_values(running: Running) -> None:
    """The resource's page says which environment variables hold the URLs, and has nothing that a run could set."""
    details = running.graphql(RESOURCES)["allTopLevelResourceDetailsOrError"]

    shown = json.dumps(details)
    assert "OUTBOX_POSTGRES_URL" in shown
    assert "OUTBOX_CLICKHOUSE_URL" in shown
    assert "://" not in shown
    assert [value for one in details["results"] for value in one["configuredValues"]] == []


def test_a_killed_code_server_is_replaced_and_delivery_goes_on(running: Running) -> None:
    """After kill -9 of the code server the stack starts another one, and new events arrive."""
    killed = running.stack.processes["code"]
    os.kill(killed.pid, signal.SIGKILL)
    running.wait(lambda: not killed.is_alive(), "the code server to be gone")

    revived = running.stack.revive()
    publish(running.stores.engine, 20)
    running.wait_for_delivery()

    assert revived == ["code"]
    assert_each_exactly_once(running.stores.engine, running.stores.client)
