"""A run's config is taken as it is written: it chooses no server and reads no variable of the environment."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.settings import today
from outbox_pipeline.stores import Stores

VARIABLE = "OUTBOX_TEST_SECRET"
SECRET = "s3cret-4711"
ASKING = {"env": VARIABLE}

Path = tuple[str, ...]


def all_jobs() -> list[dg.JobDefinition]:
    """Return every job of the location, Dagster's own job for backfills included."""
    return list(build_definitions().get_repository_def().get_all_jobs())


def leaves(kind: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield each place of a config schema that takes a value, and its type; `[]` stands for a list's element."""
    if hasattr(kind, "fields"):
        for name, field in kind.fields.items():
            yield from leaves(field.config_type, (*path, name))
    elif hasattr(kind, "inner_type"):
        yield from leaves(kind.inner_type, (*path, "[]") if isinstance(kind, dg.Array) else path)
    else:
        yield path, kind


def put(config: dict[str, Any], path: Path, value: object) -> dict[str, Any]:
    """Return *config* with *value* at *path*."""
    if not path:
        return value  # type: ignore[return-value]
    if path[0] == "[]":
        return [put({}, path[1:], value)]  # type: ignore[return-value]
    return {**config, path[0]: put(config.get(path[0], {}), path[1:], value)}


def with_required(job: dg.JobDefinition) -> dict[str, Any]:
    """Return the least config the job starts with."""
    return {"ops": {"discard_held": {"config": {"note": "no use"}}}} if job.name == "discard_quarantined" else {}


def execute(instance: dg.DagsterInstance, job: dg.JobDefinition, config: dict[str, Any]) -> None:
    """Run the job in this process to its end, whatever that is."""
    day = today().isoformat() if job.partitions_def is not None else None
    job.execute_in_process(instance=instance, run_config=config, partition_key=day, raise_on_error=False)


def everything_kept(instance: dg.DagsterInstance) -> str:
    """Return all that Dagster has stored of all runs."""
    kept = []
    for record in instance.get_run_records():
        kept += [repr(record), *(entry.to_json() for entry in instance.all_logs(record.dagster_run.run_id))]
    return "\n".join(kept)


def test_no_value_of_a_run_comes_from_the_environment(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every field of every job refuses `{env: …}` before a run is made, and the variable's value is told nowhere."""
    monkeypatch.setenv(VARIABLE, SECRET)
    asked, taken, said = set(), set(), []
    for job in all_jobs():
        for path, kind in leaves(job.run_config_schema.config_type):
            if kind.key == "Any":
                continue
            asked.add((job.name, path))
            try:
                dg.validate_run_config(job, put(with_required(job), path, ASKING))
                execute(instance, job, put(with_required(job), path, ASKING))
                taken.add((job.name, path))
            except dg.DagsterInvalidConfigError as refused:
                said.append(str(refused))

    fields = {path[-1] if path[-1] != "[]" else path[-2] for _, path in asked}
    assert {"batch_id", "event_ids", "since", "note", "first_day", "attempt", "dry_run", "log_level"} <= fields
    assert taken == set()
    assert SECRET not in "\n".join(said)
    assert SECRET not in everything_kept(instance)


def test_where_any_config_is_taken_nothing_is_filled_in(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ops and checks without config take anything and look at none of it."""
    monkeypatch.setenv(VARIABLE, SECRET)
    asked = []
    for job in all_jobs():
        config = with_required(job)
        for path, kind in leaves(job.run_config_schema.config_type):
            if kind.key == "Any":
                config = put(config, path, ASKING)
                asked.append(path)
        if config != with_required(job):
            execute(instance, job, config)

    assert len(asked) > 0
    assert VARIABLE in everything_kept(instance)
    assert SECRET not in everything_kept(instance)


def test_no_run_chooses_a_server() -> None:
    """The resources of no job have a config field, so a run works on the servers of its code location."""
    jobs = all_jobs()
    offered = [path for job in jobs for path, _ in leaves(job.run_config_schema.config_type) if path[0] == "resources"]

    assert len(jobs) >= 9
    assert offered == []


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("deliver_batch", {"batch_id": SECRET}),
        ("resume_parked_batches", {"batch_id": SECRET}),
        ("requeue_quarantined", {"event_ids": [SECRET]}),
        ("requeue_quarantined", {"since": SECRET}),
        ("requeue_quarantined", {"until": SECRET}),
        ("requeue_quarantined", {"batch_id": SECRET}),
        ("requeue_quarantined", {"event_type": SECRET, "reason": SECRET}),
        ("discard_quarantined", {"note": SECRET, "everything": True}),
        ("reconcile_days", {"first_day": SECRET}),
        ("reconcile_days", {"last_day": SECRET}),
    ],
)
def test_a_failed_run_does_not_repeat_what_it_was_given(
    instance: dg.DagsterInstance, stores: Stores, name: str, config: dict[str, object]
) -> None:
    """What a run was given and cannot use stays in its config: errors say which field is wrong, without the value."""
    job = build_definitions().resolve_job_def(name)
    (op,) = job.graph.node_dict

    execute(instance, job, {"ops": {op: {"config": config}}})

    (record,) = instance.get_run_records(limit=1)
    events = [entry for entry in instance.all_logs(record.dagster_run.run_id) if entry.dagster_event is not None]
    assert record.dagster_run.status == dg.DagsterRunStatus.FAILURE
    assert dg.DagsterEventType.STEP_FAILURE in {entry.dagster_event_type for entry in events}
    assert [entry.dagster_event_type for entry in events if SECRET in entry.to_json()] == []
