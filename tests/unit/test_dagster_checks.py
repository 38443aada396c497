"""What the doctor says of Dagster's home, daemon, sensors and queue, one finding at a time."""

from dataclasses import replace
from pathlib import Path

import pytest

from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.monitoring.doctor_dagster import (
    check_daemon,
    check_home,
    check_queue,
    check_sensors,
    examine_dagster,
)
from outbox_pipeline.orchestration.host.instance import prepare_dagster_home
from outbox_pipeline.postgres.dagster_storage import DagsterState
from outbox_pipeline.settings import Settings

WELL = DagsterState(
    heartbeat_ages={"SENSOR": 12.0, "QUEUED_RUN_COORDINATOR": 20.0, "ASSET": 9_999.0},
    sensors={"outbox_sensor": "DECLARED_IN_CODE", "health_sensor": "RUNNING"},
    last_ticks={"outbox_sensor": "SKIPPED", "health_sensor": "SUCCESS"},
    outbox_tick_age=4.0,
    queued_count=3,
    queued_seconds=20.0,
    working_count=4,
    oldest_run_id="0b5c",
    oldest_run_seconds=30.0,
)


def test_a_working_dagster_has_no_finding() -> None:
    """Young heartbeats, ticks and a short queue are fine, and so is a daemon that nothing here needs."""
    assert [check(WELL).ok for check in (check_daemon, check_sensors, check_queue)] == [True] * 3


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (check_daemon(replace(WELL, heartbeat_ages={})), ["SENSOR", "has never run", "outbox up"]),
        (
            check_daemon(replace(WELL, heartbeat_ages={"SENSOR": 9.0, "QUEUED_RUN_COORDINATOR": 7200.0})),
            ["QUEUED_RUN_COORDINATOR (starts queued runs) is silent for 2.0 h", "dagster-daemon run"],
        ),
        (
            check_sensors(replace(WELL, sensors={**WELL.sensors, "outbox_sensor": "STOPPED"})),
            ["Switched off: outbox_sensor", "Nothing is delivered"],
        ),
        (check_sensors(replace(WELL, sensors={"x_sensor": "STOPPED"})), ["Switched off: x_sensor", "Automation"]),
        (check_sensors(replace(WELL, last_ticks={"health_sensor": "FAILURE"})), ["health_sensor", "shows the error"]),
        (check_sensors(replace(WELL, outbox_tick_age=600.0)), ["not ticked for 10 min", "code location"]),
        (check_sensors(replace(WELL, outbox_tick_age=None)), ["has never ticked"]),
        (
            check_queue(replace(WELL, queued_seconds=1200.0)),
            ["3 runs queued, the oldest for 20 min", "0b5c", "max_concurrent_runs"],
        ),
        (check_queue(replace(WELL, queued_seconds=1200.0, working_count=0)), ["none is at work", "daemon"]),
    ],
)
def test_each_fault_is_named_with_what_to_do(check: Check, said: list[str]) -> None:
    """A finding says which part is at fault and the next step."""
    assert check.ok is False
    assert [words for words in said if words not in check.message] == []


def test_the_packaged_home_is_fine(tmp_path: Path) -> None:
    """The folder that `outbox up` prepares passes."""
    home = prepare_dagster_home(tmp_path)

    assert check_home(str(home), {}).ok is True


def test_no_home_is_nothing_to_tell() -> None:
    """`outbox up` sets its own, so without DAGSTER_HOME there is no line about it."""
    assert "dagster home" not in {check.name for check in examine_dagster(Settings(), {})}


def test_a_wrong_home_is_named(tmp_path: Path) -> None:
    """A home that is relative, missing, without dagster.yaml, or of another instance is a finding."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dagster.yaml").write_text("storage:\n  postgres:\n    # env: OUTBOX_DAGSTER_URL\n")

    found = {name: check_home(str(tmp_path / name), {}) for name in ("none", "empty", "other")}
    relative = check_home("dagster", {})

    assert [check.ok for check in (*found.values(), relative)] == [False] * 4
    assert "no absolute path" in relative.message
    assert "no absolute path" in found["none"].message
    assert "no dagster.yaml" in found["empty"].message
    assert "another instance" in found["other"].message


def test_a_variable_that_dagster_needs_is_named(tmp_path: Path) -> None:
    """Without one that its dagster.yaml reads, Dagster starts no run, and sensors tick as ever."""
    deployed = Path(__file__).parents[2] / "deploy" / "dagster" / "kubernetes.yaml"
    (tmp_path / "dagster.yaml").write_bytes(deployed.read_bytes())
    names = ("IMAGE", "NAMESPACE", "SERVICE_ACCOUNT", "SECRET", "CONFIG_MAP")
    environment = {f"DAGSTER_K8S_RUN_{name}": "set" for name in names}

    assert check_home(str(tmp_path), environment).ok
    for name in environment:
        found = check_home(str(tmp_path), {other: "set" for other in environment if other != name})
        assert found.ok is False
        assert f"not set here: {name}. " in found.message
