"""What Dagster loads: the location, its instance file, and nothing secret in it."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config

from outbox_pipeline.clickhouse.table import COLUMNS
from outbox_pipeline.orchestration.assets import EVENT_LOG
from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.orchestration.host.instance import DEFINITIONS_MODULE, LOCATION_NAME

ROOT = Path(__file__).parents[2]


def test_the_location_loads_without_settings() -> None:
    """Definitions load before any URL is set, as the UI and `dagster definitions validate` need."""
    definitions = build_definitions()

    dg.Definitions.validate_loadable(definitions)
    assert definitions.resolve_job_def("deliver_batch").partitions_def is not None


def all_nodes(graph: dg.GraphDefinition) -> list[dg.OpDefinition | dg.GraphDefinition]:
    """Return every op below a graph."""
    nodes: list[dg.OpDefinition | dg.GraphDefinition] = []
    for node in graph.node_dict.values():
        below = node.definition
        nodes += all_nodes(below) if isinstance(below, dg.GraphDefinition) else [below]  # type: ignore[list-item]
    return nodes


def test_no_step_is_tried_again_by_a_policy() -> None:
    """With one Dagster would also try again what somebody has terminated; an error that passes asks for it itself."""
    definitions = build_definitions()
    graphs = [job.graph for job in definitions.resolve_all_job_defs()]

    assert len(graphs) > 5
    assert [node.name for graph in graphs for node in all_nodes(graph) if getattr(node, "retry_policy", None)] == []


def undescribed_fields(field: Any, path: str) -> list[str]:
    """Return each config field without a description, with its path."""
    fields = getattr(field, "fields", None)
    if fields is None:
        inner = getattr(field, "inner_type", None)
        return [] if inner is None else undescribed_fields(inner, path)
    missing: list[str] = []
    for name, one in fields.items():
        below = f"{path}.{name}"
        is_leaf = getattr(one.config_type, "fields", None) is None
        missing += [below] if is_leaf and not one.description else []
        missing += undescribed_fields(one.config_type, below)
    return missing


def test_everything_shown_in_the_ui_is_described() -> None:
    """Each op, job, sensor, schedule, check and asset says what it is for, and each config field what it takes."""
    definitions = build_definitions()
    repository = definitions.get_repository_def()
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    ops = {node.name: node for job in repository.get_all_jobs() for node in all_nodes(job.graph)}
    checks = [spec for checks in definitions.asset_checks or [] for spec in checks.check_specs]  # type: ignore[union-attr]
    shown = [*jobs, *ops.values(), *repository.sensor_defs, *repository.schedule_defs, *checks]
    shown += definitions.resolve_all_asset_specs()
    fields = {path for op in ops.values() for path in undescribed_fields(op.config_schema.config_type, op.name)}

    assert len(jobs) >= 5
    assert len(ops) >= 8
    assert [getattr(item, "name", item) for item in shown if len(item.description or "") <= 80] == []
    assert sorted(fields) == []


def test_every_op_and_asset_says_what_it_touches() -> None:
    """Ops carry the kind of the store they work on; assets their kinds and the group of the pipeline."""
    definitions = build_definitions()
    repository = definitions.get_repository_def()
    ops = {node.name: node for job in repository.get_all_jobs() for node in all_nodes(job.graph)}
    checks = {node.op.name for node in definitions.asset_checks or []}  # type: ignore[union-attr]

    untagged = [name for name, op in ops.items() if "kind" not in op.tags and name not in checks]
    assert untagged == []
    assert all(spec.kinds and spec.group_name == "outbox" for spec in build_definitions().resolve_all_asset_specs())


def test_the_event_log_shows_its_columns() -> None:
    """The catalog has each column of the ClickHouse table with type and meaning, and the table's name."""
    (spec,) = [spec for spec in build_definitions().resolve_all_asset_specs() if spec.key == EVENT_LOG]

    schema = spec.metadata["dagster/column_schema"]
    assert {column.name: column.type for column in schema.columns} == COLUMNS
    assert all(column.description for column in schema.columns)
    assert spec.metadata["dagster/table_name"] == "event_log"


@pytest.mark.parametrize("hours", ["", "24"])
def test_a_quiet_event_log_is_a_fault_only_where_it_is_said(hours: str) -> None:
    """Dagster's freshness counts deliveries, so event_log has a policy only with OUTBOX_FRESHNESS_HOURS."""
    script = (
        "from outbox_pipeline.orchestration.definitions import defs\n"
        "spec, = [spec for spec in defs.resolve_all_asset_specs() if spec.key.path == ['event_log']]\n"
        "policy = spec.freshness_policy\n"
        "print(policy and policy.fail_window.to_timedelta().total_seconds(), *spec.owners)"
    )
    environment = {**os.environ, "OUTBOX_FRESHNESS_HOURS": hours, "OUTBOX_OWNERS": "team:data, ops@example.com"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["86400.0" if hours else "None", "team:data", "ops@example.com"]


def test_the_sensors_run_by_default() -> None:
    """A new deployment delivers and watches its health without anybody switching something on."""
    sensors = build_definitions().get_repository_def().sensor_defs

    assert {sensor.name for sensor in sensors} >= {"outbox_sensor", "health_sensor"}
    assert all(sensor.default_status == dg.DefaultSensorStatus.RUNNING for sensor in sensors)


def test_the_schedules_run_by_default() -> None:
    """Without anybody switching them on both sides are compared and databases kept small, behind deliveries."""
    repository = build_definitions().get_repository_def()

    assert {schedule.name for schedule in repository.schedule_defs} >= {
        "prune_hourly",
        "purge_history_daily",
        "reconcile_daily",
    }
    assert all(one.default_status == dg.DefaultScheduleStatus.RUNNING for one in repository.schedule_defs)
    for name in ("prune_outbox", "prune_dagster_history"):
        assert int(repository.get_job(name).run_tags["dagster/priority"]) < 0


def test_the_queue_keeps_places_for_live_delivery(instance: dg.DagsterInstance) -> None:
    """Four runs at once, of them two of backfills and one that can wait; a queued one survives a new code server."""
    queue = instance.get_concurrency_config().run_queue_config

    assert queue is not None
    assert queue.max_concurrent_runs == 4
    assert {limit["key"]: limit["limit"] for limit in queue.tag_concurrency_limits} == {
        "dagster/backfill": 2,
        "outbox/background": 1,
    }
    assert (queue.max_user_code_failure_retries, queue.user_code_failure_retry_delay) == (5, 10)


@pytest.mark.parametrize("more", [{}, {"pools": {"default_limit": 2}}])
def test_pools_can_be_limited_beside_the_queue(tmp_path: Path, more: dict[str, Any]) -> None:
    """Dagster refuses a file with limits of pools, and of runs in the older form."""
    file = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    file["concurrency"] |= more
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(file))

    config, _ = dagster_instance_config(str(tmp_path))

    assert config["run_queue"]["dequeue_interval_seconds"] == 1


def test_the_workspace_names_this_location() -> None:
    """`dagster dev`, `dg dev` and `outbox up` serve the same code location."""
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())

    target = workspace["load_from"][0]["python_module"]
    assert (target["module_name"], target["location_name"]) == (DEFINITIONS_MODULE, LOCATION_NAME)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    named = (project["code_location_target_module"], project["code_location_name"])
    assert named == (DEFINITIONS_MODULE, LOCATION_NAME)


def test_the_packaged_instance_file_is_the_one_at_the_top() -> None:
    """The checkout's dagster.yaml is the package's; a copy of the package alone, as in an image, has it too."""
    packaged = ROOT / "outbox_pipeline" / "orchestration" / "dagster.yaml"

    assert not packaged.is_symlink()
    assert packaged.resolve() == (ROOT / "dagster.yaml").resolve()
