"""The names that users have written down: in imports, run configs, alert rules, dashboards and Dagster's own records.

A name that is missing here breaks somebody's deployment. One that is new is a promise from now on: write it down here.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import pytest
import yaml

import outbox_pipeline
import outbox_pipeline.django
from outbox_pipeline import testing
from outbox_pipeline.orchestration import storage
from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.orchestration.host.instance import LOCATION_NAME

ROOT = Path(__file__).parents[2]

PACKAGE = {
    "Event",
    "EventId",
    "NoTransactionError",
    "PublishError",
    "not_published_count",
    "publish_event",
    "publish_event_async",
    "publish_events",
    "publish_events_async",
    "publishes",
}
DJANGO = {"publish_event", "publish_events", "publishes"}
TESTING = {"Outbox", "OutboxTestMixin", "PublishedEvent"}

#: Modules that a command line, a workspace or an instance file names.
MODULES = [
    "outbox_pipeline.orchestration.definitions",
    "outbox_pipeline.orchestration.storage",
    "outbox_pipeline.orchestration.code_server",
    "outbox_pipeline.orchestration.webserver",
]

JOBS = {
    "deliver_batch",
    "discard_quarantined",
    "prune_dagster_history",
    "prune_outbox",
    "recheck_batches",
    "reconcile_days",
    "requeue_quarantined",
    "resume_parked_batches",
}
SENSORS = {"alert_sensor", "completeness_sensor", "health_sensor", "outbox_sensor", "recheck_sensor"}
SCHEDULES = {"prune_hourly", "purge_history_daily", "reconcile_daily"}
ASSETS = {"event_log", "postgres/outbox"}
CHECKS = {
    "event_log/delivered_whole",
    "event_log/reconciled",
    "postgres/outbox/automation_is_on",
    "postgres/outbox/clickhouse_answers",
    "postgres/outbox/lag_below_threshold",
    "postgres/outbox/ledger_consistent",
    "postgres/outbox/no_old_gap",
    "postgres/outbox/nothing_parked",
    "postgres/outbox/quarantine_empty",
}
_CHOICE = {"batch_id", "dry_run", "event_ids", "event_type", "everything", "reason", "since", "until"}
#: Each op, and the config that a run gives it. The ops of `event_log` take theirs from the graph.
OPS: dict[str, set[str]] = {
    "compare_days": {"by_type", "first_day", "last_day", "repair"},
    "discard_held": {*_CHOICE, "note"},
    "event_log": {"attempt", "batch_id", "reload"},
    "event_log.extract_batch": {"attempt", "batch_id", "reload"},
    "event_log.load_batch": {"attempt", "batch_id", "reload"},
    "event_log.mark_processed": {"attempt", "batch_id", "reload"},
    "event_log.validate_batch": {"attempt", "batch_id", "reload"},
    "prune_delivered": {"dry_run", "minutes"},
    "purge_old_events": {"minutes"},
    "recheck_due": set(),
    "requeue_held": _CHOICE,
    "resume_batches": {"batch_id"},
}


@pytest.fixture(scope="module")
def repository() -> dg.RepositoryDefinition:
    """What Dagster loads."""
    return build_definitions().get_repository_def()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_is_named_elsewhere_is_there(name: str) -> None:
    """It can be imported under the name that stands in a workspace, a unit file or an instance file."""
    assert isinstance(importlib.import_module(name), ModuleType)


def test_the_instance_file_names_the_storage() -> None:
    """`dagster.yaml`, of which every deployment has a copy, names module and class."""
    named = yaml.safe_load((ROOT / "dagster.yaml").read_text())["storage"]["custom"]

    assert named["module"] == "outbox_pipeline.orchestration.storage"
    assert getattr(storage, named["class"]) is storage.PooledPostgresStorage


def test_the_location_keeps_its_name() -> None:
    """It is in every run key and in the addresses of the UI."""
    assert LOCATION_NAME == "outbox_pipeline"


def test_the_public_names_of_the_package_are_these() -> None:
    """What an application imports to publish and to test, plain or with Django."""
    assert set(outbox_pipeline.__all__) == PACKAGE
    assert all(hasattr(outbox_pipeline, name) for name in PACKAGE)
    assert set(outbox_pipeline.django.__all__) == DJANGO
    assert all(hasattr(outbox_pipeline.django, name) for name in DJANGO)
    assert set(testing.__all__) == TESTING
    assert all(hasattr(testing, name) for name in {*TESTING, "outbox"})


def test_what_the_ui_lists_has_these_names(repository: dg.RepositoryDefinition) -> None:
    """Jobs, sensors, schedules, assets and checks: alert rules, links and Dagster's own records hold their names."""
    graph = repository.asset_graph

    assert {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")} == JOBS
    assert {sensor.name for sensor in repository.sensor_defs} == SENSORS
    assert {schedule.name for schedule in repository.schedule_defs} == SCHEDULES
    assert {key.to_user_string() for key in graph.get_all_asset_keys()} == ASSETS
    assert {f"{key.asset_key.to_user_string()}/{key.name}" for key in graph.asset_check_keys} == CHECKS


def config_of(node: Any) -> set[str]:
    """Return the names of the fields that a run gives to an op or a graph."""
    mapping = node.config_mapping if isinstance(node, dg.GraphDefinition) else None
    schema = (mapping.config_schema if mapping else node.config_schema).config_type
    return set(getattr(schema, "fields", {}))


def nodes_of(graph: dg.GraphDefinition, path: str = "") -> dict[str, Any]:
    """Return every op below a graph by its path in a run config."""
    found: dict[str, Any] = {}
    for name, node in graph.node_dict.items():
        found[path + name] = node.definition
        if isinstance(node.definition, dg.GraphDefinition):
            found |= nodes_of(node.definition, f"{path}{name}.")
    return found


def test_run_configs_name_these_ops_and_fields(repository: dg.RepositoryDefinition) -> None:
    """A run config that was written down, or is kept with a run that is executed again, still fits."""
    jobs = [job for job in repository.get_all_jobs() if job.name in JOBS]
    nodes = {name: node for job in jobs for name, node in nodes_of(job.graph).items()}

    assert {name: config_of(node) for name, node in nodes.items()} == OPS
