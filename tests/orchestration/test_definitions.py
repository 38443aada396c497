"""What Dagster loads: the location, its instance file, and nothing secret in it."""

import json
from pathlib import Path

import dagster as dg
import yaml

from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.orchestration.instance import DEFINITIONS_MODULE, LOCATION_NAME

ROOT = Path(__file__).parents[2]


def test_the_location_loads_without_settings() -> None:
    """Definitions load before any URL is set, as the UI and `dagster definitions validate` need."""
    definitions = build_definitions()

    dg.Definitions.validate_loadable(definitions)
    assert definitions.resolve_job_def("deliver_batch").partitions_def is not None


def test_everything_shown_in_the_ui_is_described() -> None:
    """Each op, job, sensor and asset says what it is for."""
    repository = build_definitions().get_repository_def()
    job = repository.get_job("deliver_batch")
    nodes = [node.definition for node in job.graph.node_dict["event_log"].definition.node_dict.values()]  # type: ignore[attr-defined]

    assert all(len(node.description or "") > 80 for node in nodes)
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    checks = [spec for checks in build_definitions().asset_checks or [] for spec in checks.check_specs]  # type: ignore[union-attr]
    assert all(len(item.description or "") > 80 for item in (*jobs, *checks))
    assert all(len(sensor.description or "") > 80 for sensor in repository.sensor_defs)
    assert all(len(schedule.description or "") > 80 for schedule in repository.schedule_defs)
    assert all(spec.description for spec in build_definitions().resolve_all_asset_specs())


def test_the_sensors_run_by_default() -> None:
    """A new deployment delivers and watches its quarantine without anybody switching something on."""
    sensors = build_definitions().get_repository_def().sensor_defs

    assert {sensor.name for sensor in sensors} >= {"outbox_sensor", "quarantine_sensor"}
    assert all(sensor.default_status == dg.DefaultSensorStatus.RUNNING for sensor in sensors)
    schedules = build_definitions().get_repository_def().schedule_defs
    assert {schedule.name for schedule in schedules} >= {"reconcile_daily"}
    assert all(schedule.default_status == dg.DefaultScheduleStatus.RUNNING for schedule in schedules)


def test_the_schedules_run_by_default() -> None:
    """Both databases stay small without anybody switching something on, and behind deliveries."""
    repository = build_definitions().get_repository_def()

    assert {schedule.name for schedule in repository.schedule_defs} >= {"prune_hourly", "purge_history_daily"}
    assert all(one.default_status == dg.DefaultScheduleStatus.RUNNING for one in repository.schedule_defs)
    for name in ("prune_outbox", "prune_dagster_history"):
        assert int(repository.get_job(name).run_tags["dagster/priority"]) < 0


def test_the_workspace_names_this_location() -> None:
    """`dagster dev` and `outbox up` serve the same code location."""
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())

    target = workspace["load_from"][0]["python_module"]
    assert (target["module_name"], target["location_name"]) == (DEFINITIONS_MODULE, LOCATION_NAME)


def test_the_packaged_instance_file_is_the_one_at_the_top() -> None:
    """The wheel carries the checkout's dagster.yaml."""
    packaged = ROOT / "outbox_pipeline" / "orchestration" / "dagster.yaml"

    assert packaged.resolve() == (ROOT / "dagster.yaml").resolve()


def test_resources_hold_names_of_variables_not_urls() -> None:
    """What the UI shows of the resource are names of environment variables."""
    resource = (build_definitions().resources or {})["pipeline"]

    shown = json.dumps({name: repr(value) for name, value in dict(resource).items()})
    assert "EnvVar" in shown or "OUTBOX_POSTGRES_URL" in shown
    assert "://" not in shown
