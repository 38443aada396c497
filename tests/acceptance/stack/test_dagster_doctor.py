"""The doctor on Dagster's real tables: one that runs, one where a sensor is switched off, one that has stopped."""

import time
from typing import Any

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat
from pydantic import SecretStr
from sqlalchemy import create_engine, text

from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.monitoring.doctor_dagster import examine_dagster
from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.orchestration.host.instance import LOCATION_NAME
from outbox_pipeline.settings import Settings
from tests.fixtures.stack import Running

SENSORS = """query($location: String!) {
  sensorsOrError(repositorySelector: {repositoryLocationName: $location, repositoryName: "__repository__"}) {
    ... on Sensors { results { id name sensorState { id status } } }
  }
}"""
STOP = """mutation($id: String!) { stopSensor(id: $id) { __typename } }"""
START = """mutation($selector: SensorSelector!) { startSensor(sensorSelector: $selector) { __typename } }"""


def examined(running: Running) -> dict[str, Check]:
    """Return what the doctor says of Dagster."""
    settings = Settings(dagster_url=SecretStr(running.environment["OUTBOX_DAGSTER_URL"]))
    home = str(running.stack.plan.home / "dagster")
    return {check.name: check for check in examine_dagster(settings, {"DAGSTER_HOME": home})}


def sensor(running: Running, name: str) -> dict[str, Any]:
    """Return what the UI knows of a sensor."""
    results = running.graphql(SENSORS, {"location": LOCATION_NAME})["sensorsOrError"]["results"]
    return next(result for result in results if result["name"] == name)


@pytest.mark.timeout(600)
def test_doctor_finds_what_is_switched_off_in_a_running_stack(running: Running) -> None:
    """On a stack that works every check passes; a sensor stopped in the UI is named until it is started again."""
    running.wait(lambda: all(check.ok for check in examined(running).values()), "daemon and sensors to tick")
    running.graphql(STOP, {"id": sensor(running, "recheck_sensor")["sensorState"]["id"]})
    try:
        stopped = examined(running)["dagster sensors"]
    finally:
        selector = {
            "sensorName": "recheck_sensor",
            "repositoryName": "__repository__",
            "repositoryLocationName": LOCATION_NAME,
        }
        running.graphql(START, {"selector": selector})

    assert stopped.ok is False
    assert "Switched off: recheck_sensor" in stopped.message
    assert examined(running)["dagster sensors"].ok is True


def test_doctor_finds_a_dagster_that_has_stopped(instance: dg.DagsterInstance, dagster_url: str) -> None:
    """In the storage of a Dagster that no longer runs, the silent daemon and the waiting run are found."""
    for kind in ("SENSOR", "QUEUED_RUN_COORDINATOR"):
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 3600, kind, "here", []))
    job = build_definitions().resolve_job_def("resume_parked_batches")
    run = instance.create_run_for_job(job)
    engine = create_engine(dagster_url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE runs SET status = 'QUEUED', create_timestamp = create_timestamp - interval '1 hour'"
                " WHERE run_id = :run_id"
            ),
            {"run_id": run.run_id},
        )
    found = {check.name: check for check in examine_dagster(Settings(dagster_url=SecretStr(dagster_url)), {})}
    instance.delete_run(run.run_id)
    engine.dispose()

    assert found["dagster daemon"].ok is False
    assert "silent for 60 min" in found["dagster daemon"].message
    assert found["dagster queue"].ok is False
    assert " queued, the oldest for 60 min" in found["dagster queue"].message
    assert found["dagster sensors"].ok is False
    assert "has never ticked" in found["dagster sensors"].message
