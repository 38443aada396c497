"""How long each run may be at work, and that Dagster gives its place back then."""

import logging
import time
from typing import Any

import dagster as dg
import pytest
from dagster._daemon.monitoring.run_monitoring import monitor_started_run
from sqlalchemy import text

from outbox_pipeline.batches import Batch
from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.orchestration.run_limits import (
    comparison_seconds,
    move_limit,
    redelivery_seconds,
)
from outbox_pipeline.orchestration.run_tags import MAX_RUNTIME_TAG
from outbox_pipeline.settings import Settings, today
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import BREAKAGES
from tests.fixtures.runs import execute, run_config
from tests.fixtures.snapshots import delivered_batches

#: What each job has by default, and why: docs/architecture.md has the same.
LIMITS = {
    "deliver_batch": 3600,
    "resume_parked_batches": 280,
    "requeue_quarantined": 560,
    "discard_quarantined": 560,
    "recheck_batches": 1360,
    "prune_outbox": 1200,
    "prune_dagster_history": 1200,
    "reconcile_days": 2700,
}

#: What a test's run may have worked for before it moved its limit.
_LEEWAY_SECONDS = 120


def limit_of(instance: dg.DagsterInstance, run_id: str) -> int:
    """Return a run's limit as Dagster has it now."""
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return int(run.tags[MAX_RUNTIME_TAG])


def test_every_job_has_the_limit_that_fits() -> None:
    """None is missing and none has Dagster's general one, which would keep a dead run's place for two hours."""
    repository = build_definitions().get_repository_def()
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]

    assert {job.name: int(job.run_tags[MAX_RUNTIME_TAG]) for job in jobs} == LIMITS


def test_limits_follow_the_settings() -> None:
    """More days to compare and larger batches have more time."""
    assert comparison_seconds(30) - comparison_seconds(7) == 23 * 300
    smaller = Settings(batch_max_bytes=1_000_000)
    assert redelivery_seconds(Settings()) - redelivery_seconds(smaller) == pytest.approx(636)


def started(instance: dg.DagsterInstance, tags: dict[str, str], *, seconds: float) -> str:
    """Make a run that Dagster counts among those at work since *seconds*, and return its id."""
    run = dg.DagsterRun(job_name="prune_outbox", tags=tags, status=dg.DagsterRunStatus.STARTED)
    instance.add_run(run)
    statement = text("UPDATE runs SET start_time = :at WHERE run_id = :id")
    with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        connection.execute(statement, {"at": time.time() - seconds, "id": run.run_id})
    return run.run_id


def look(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    """Let Dagster's monitoring look at the run, and return what it is then."""
    record = instance.get_run_record_by_id(run_id)
    assert record is not None
    workspace: Any = None
    monitor_started_run(instance, workspace, record, logging.getLogger("monitoring"))
    after = instance.get_run_by_id(run_id)
    assert after is not None
    return after.status


def test_dagster_knows_of_a_dead_run_by_its_limit_alone(instance: dg.DagsterInstance) -> None:
    """Its own launcher is asked by nobody whether a run lives, so the tag is what ends one."""
    tags = build_definitions().get_repository_def().get_job("prune_outbox").run_tags
    young = started(instance, dict(tags), seconds=LIMITS["prune_outbox"] - 60)
    old = started(instance, dict(tags), seconds=LIMITS["prune_outbox"] + 60)

    assert not instance.run_launcher.supports_check_run_worker_health
    assert look(instance, young) == dg.DagsterRunStatus.STARTED
    assert look(instance, old) == dg.DagsterRunStatus.FAILURE


def test_a_limit_that_is_moved_counts_from_now(instance: dg.DagsterInstance) -> None:
    """A run that has worked for an hour has as much time for its next step as one that has just begun."""
    run_id = started(instance, {MAX_RUNTIME_TAG: "3600"}, seconds=3590)

    move_limit(instance, run_id, 900)

    assert 4490 <= limit_of(instance, run_id) <= 4490 + _LEEWAY_SECONDS
    assert look(instance, run_id) == dg.DagsterRunStatus.STARTED


@pytest.fixture
def batches(stores: Stores) -> list[Batch]:
    """Three processed batches, today."""
    return delivered_batches(stores)


@pytest.mark.parametrize("reload", [False, True])
def test_a_run_for_a_day_moves_its_limit_with_each_batch(
    instance: dg.DagsterInstance, stores: Stores, batches: list[Batch], reload: bool
) -> None:
    """It has no natural end, and the job's hour is for one batch."""
    BREAKAGES["half a batch"].do(stores.client, batches[1].batch_id)

    run_id = execute(instance, run_config(reload=reload)).run_id

    one_more = redelivery_seconds(stores.settings)
    assert one_more <= limit_of(instance, run_id) <= one_more + _LEEWAY_SECONDS


def test_a_run_that_compares_has_time_for_its_days(instance: dg.DagsterInstance, batches: list[Batch]) -> None:
    """What its config chooses counts, and not how many days are compared every night."""
    config = {"first_day": str(today()), "last_day": str(today())}
    job = build_definitions().resolve_job_def("reconcile_days")
    run_id = job.execute_in_process(instance=instance, run_config={"ops": {"compare_days": {"config": config}}}).run_id

    wanted = comparison_seconds(1) + redelivery_seconds(Settings())
    assert wanted <= limit_of(instance, run_id) <= wanted + _LEEWAY_SECONDS


def test_a_prune_has_the_minutes_of_its_config(instance: dg.DagsterInstance, stores: Stores) -> None:
    """Longer than the job's limit, when a person asks for it."""
    job = build_definitions().resolve_job_def("prune_outbox")
    run_id = job.execute_in_process(
        instance=instance, run_config={"ops": {"prune_delivered": {"config": {"minutes": 40, "dry_run": True}}}}
    ).run_id

    assert 3000 <= limit_of(instance, run_id) <= 3000 + _LEEWAY_SECONDS


def test_a_check_that_a_person_executes_has_a_limit(instance: dg.DagsterInstance, stores: Stores) -> None:
    """Runs of the asset's page have no job's tags."""
    job = build_definitions().resolve_implicit_global_asset_job_def()
    chosen = job.get_subset(
        asset_check_selection={dg.AssetCheckKey(dg.AssetKey(["postgres", "outbox"]), "no_old_gap")},
        asset_selection=set(),
    )
    run_id = chosen.execute_in_process(instance=instance).run_id

    assert comparison_seconds(1) <= limit_of(instance, run_id) <= comparison_seconds(1) + _LEEWAY_SECONDS
