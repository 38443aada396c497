"""Alerts through Dagster's real sensor daemon, received by a real HTTP server."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import text

from outbox_pipeline.monitoring.incidents import Incidents
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.stack import Running

SENSOR = """
{ sensorOrError(sensorSelector: {
    repositoryLocationName: "outbox_pipeline", repositoryName: "__repository__", sensorName: "alert_sensor"}) {
  __typename
  ... on Sensor { sensorState {
    ticks(limit: 5) { tickId status skipReason endTimestamp error { message } }
    typeSpecificData { ... on SensorData { lastCursor } }
  } }
} }
"""

RESUME = """
mutation { launchRun(executionParams: {
  selector: {
    repositoryLocationName: "outbox_pipeline", repositoryName: "__repository__", jobName: "resume_parked_batches"
  }
  runConfigData: {}
}) { __typename ... on PythonError { message } } }
"""


def sensor_state(running: Running) -> dict[str, Any]:
    """Return what the UI shows of alert_sensor."""
    sensor = running.graphql(SENSOR)["sensorOrError"]
    assert sensor["__typename"] == "Sensor", sensor
    state: dict[str, Any] = sensor["sensorState"]
    return state


def ticks(running: Running) -> list[dict[str, Any]]:
    """Return the latest finished ticks of alert_sensor."""
    return [tick for tick in sensor_state(running)["ticks"] if tick["endTimestamp"]]


def wait_until_kept(running: Running) -> None:
    """Wait until the cursor knows that `parked` was told: Dagster stores it after the tick."""

    def is_kept() -> bool:
        incidents = Incidents.from_json(sensor_state(running)["typeSpecificData"]["lastCursor"])
        return "parked" in incidents.is_open and not incidents.unsent

    running.wait(is_kept, "the cursor to be stored")


def wait_for_tick(running: Running, *, is_parked: bool) -> None:
    """Wait until a tick that ends from now on has the incident `parked` open, or has not."""
    before = {tick["tickId"] for tick in ticks(running)}

    def is_said() -> bool:
        new = [str(tick["skipReason"]) for tick in ticks(running) if tick["tickId"] not in before]
        return any(("parked" in reason.partition("Open incidents:")[2]) == is_parked for reason in new)

    running.wait(is_said, f"a tick of alert_sensor with parked {'open' if is_parked else 'closed'}")


def told(running: Running) -> list[tuple[str, str]]:
    """Return what was told of batches and their runs; quarantine and scheduled runs are other tests' business."""
    notices = [(notice["incident"], notice["status"]) for notice in running.alerts.notices]
    return [notice for notice in notices if notice[0].startswith(("parked", "run:deliver_batch"))]


def count_batches(running: Running, where: str) -> int:
    """Count the batches of which *where* holds."""
    with running.stores.engine.begin() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM outbox.batch WHERE {where}")).scalar_one())


@contextmanager
def with_another_column(running: Running) -> Iterator[None]:
    """Rename a column of the table during the block: a mistake that no attempt mends and no tick sees."""
    rename = "ALTER TABLE {{table:Identifier}} RENAME COLUMN {} TO {}"
    running.stores.client.run(rename.format("trace_context", "trace"))
    try:
        yield
    finally:
        running.stores.client.run(rename.format("trace", "trace_context"))


def test_a_parked_batch_is_told_once_and_its_recovery_once(running: Running) -> None:
    """Failing runs with a retry coming tell nobody, a parked batch does once, also if the daemon dies, and its end."""
    running.wait_for_delivery()
    wait_for_tick(running, is_parked=False)
    before = len(told(running))
    with with_another_column(running):
        publish(running.stores.engine, 5)
        running.wait(lambda: count_batches(running, "failures BETWEEN 1 AND 8") == 1, "an attempt to fail")
        wait_for_tick(running, is_parked=False)
        while_retrying = (count_batches(running, "status = 'parked'"), told(running)[before:])
        with running.stores.engine.begin() as connection:
            connection.execute(text("UPDATE outbox.batch SET failures = 9 WHERE status NOT IN ('processed', 'parked')"))
        wait_until_kept(running)
    os.kill(running.stack.processes["daemon"].pid, signal.SIGKILL)
    running.wait(lambda: running.stack.revive() == ["daemon"], "the daemon to be started again")
    wait_for_tick(running, is_parked=True)
    while_parked = told(running)[before:]
    assert running.graphql(RESUME)["launchRun"]["__typename"] == "LaunchRunSuccess"
    wait_for_tick(running, is_parked=False)
    running.wait_for_delivery()

    assert while_retrying == (0, [])
    assert while_parked == [("parked", "firing")]
    assert told(running)[before:] == [("parked", "firing"), ("parked", "resolved")]
    assert not [tick for tick in ticks(running) if tick["error"]]
    assert_each_exactly_once(running.stores.engine, running.stores.client)
