"""Jobs and schedules that keep both databases small: the outbox, and Dagster's own.

They wait behind deliveries in the run queue, one of them runs at a time, and each run ends after some minutes; the next
one goes on where it stopped.
"""

import dagster as dg
from pydantic import Field

from outbox_pipeline.counts import counted
from outbox_pipeline.errors import OutboxError, TransientError, first_line
from outbox_pipeline.operations.retention import Pruned, prune
from outbox_pipeline.orchestration.host.history import Purged, purge_history
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.run_config import literal
from outbox_pipeline.orchestration.run_limits import bounded_seconds, move_limit
from outbox_pipeline.orchestration.run_tags import in_background, max_runtime
from outbox_pipeline.orchestration.shared_settings import settings_tag
from outbox_pipeline.orchestration.shown import ROWS_SHOWN, Metadata, table
from outbox_pipeline.settings import load_settings

#: How long a run begins new steps, unless its config says otherwise.
_MINUTES = 10.0

_TAGS = (
    max_runtime(bounded_seconds(_MINUTES * 60)) | in_background("true", priority=-10) | settings_tag(load_settings())
)


class PruneConfig(dg.Config):
    """How long a prune works, and whether it changes anything."""

    dry_run: bool = Field(default=False, description="Only look at what would go.")
    minutes: float = Field(default=_MINUTES, gt=0, le=50, description="Stop after this long; the next run goes on.")


class PurgeConfig(dg.Config):
    """How long a purge works."""

    minutes: float = Field(default=_MINUTES, gt=0, le=50, description="Stop after this long; the next run goes on.")


@literal
@dg.op(out=dg.Out(dg.Nothing), tags={"kind": "postgres"})
def prune_delivered(context: dg.OpExecutionContext, config: PruneConfig, pipeline: PipelineResource):  # type: ignore[no-untyped-def]
    """Delete events from outbox.event that were delivered OUTBOX_RETENTION_DAYS ago, one batch a transaction.

    ClickHouse must show each batch whole at that moment; one that differs keeps its events, is named, and fails the
    run at its end. A run that dies has pruned some batches whole and the others not at all.
    """
    move_limit(context.instance, context.run_id, bounded_seconds(config.minutes * 60))
    try:
        done = prune(pipeline.stores, dry_run=config.dry_run, seconds=config.minutes * 60)
    except TransientError as error:
        context.log.warning(f"Not now, the next run tries again: {first_line(error)}")
        context.add_output_metadata({"not_now": first_line(error)})
        return
    except OutboxError as error:
        raise dg.Failure(description=first_line(error), allow_retries=False) from None
    context.log.info(
        f"{'Would prune' if done.is_dry_run else 'Pruned'} {counted(done.events, 'event')} "
        f"of {counted(done.batches, 'batch', 'batches')}."
    )
    for item in done.refused:
        context.log.error(f"Batch {item.batch_id} keeps its {counted(item.event_count, 'event')}: {item.detail}.")
    if done.refused:
        raise dg.Failure(
            description=f"{counted(len(done.refused), 'batch keeps its', 'batches keep their')} events: "
            f"{done.refused[0].detail}.",
            metadata=_of_prune(done),
            allow_retries=False,
        )
    context.add_output_metadata(_of_prune(done))


@dg.job(
    description=(
        "Delete events from PostgreSQL that ClickHouse has shown and that are older than OUTBOX_RETENTION_DAYS. "
        "prune_hourly starts it. A failed run means that ClickHouse shows a batch differently: materialize the day it "
        "names, then the next run prunes it. dry_run in the launchpad only counts."
    ),
    run_tags=_TAGS,
)
def prune_outbox() -> None:
    """Prune what is old enough."""
    prune_delivered()


@literal
@dg.op(out=dg.Out(dg.Nothing), tags={"kind": "postgres"})
def purge_old_events(context: dg.OpExecutionContext, config: PurgeConfig):  # type: ignore[no-untyped-def]
    """Delete step events, log lines and captured output of runs that are older than OUTBOX_DAGSTER_HISTORY_DAYS.

    Runs and their keys, materializations, observations, check evaluations and failures stay.
    """
    days = load_settings().dagster_history_days
    move_limit(context.instance, context.run_id, bounded_seconds(config.minutes * 60))
    try:
        done = purge_history(context.instance, days=days, seconds=config.minutes * 60)
    except OutboxError as error:
        raise dg.Failure(description=first_line(error), allow_retries=False) from None
    context.add_output_metadata(_of_purge(done, days=days))


@dg.job(
    description=(
        "Keep Dagster's own database small: delete what it logged step by step about runs older than "
        "OUTBOX_DAGSTER_HISTORY_DAYS. purge_history_daily starts it. The runs themselves, plots and checks stay."
    ),
    run_tags=_TAGS,
)
def prune_dagster_history() -> None:
    """Purge what is old enough."""
    purge_old_events()


prune_hourly = dg.ScheduleDefinition(
    name="prune_hourly",
    job=prune_outbox,
    cron_schedule="17 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description=(
        "Starts prune_outbox every hour, so that each run has little to do. It waits behind deliveries and works ten "
        "minutes at most. With OUTBOX_RETENTION_DAYS=0 its runs do nothing."
    ),
)

purge_history_daily = dg.ScheduleDefinition(
    name="purge_history_daily",
    job=prune_dagster_history,
    cron_schedule="43 3 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description=(
        "Starts prune_dagster_history every night. It waits behind deliveries and works ten minutes at most; what is "
        "left then is the next night's."
    ),
)


def _of_prune(done: Pruned) -> Metadata:
    """Show what was pruned, what was not and why, and how far back the outbox reaches now."""
    oldest = {} if done.oldest_kept_at is None else {"oldest_kept_at": dg.MetadataValue.timestamp(done.oldest_kept_at)}
    skipped: list[dict[str, int | str]] = [
        {"batch_id": str(item.batch_id), "day": str(item.recorded_on), "events": item.event_count, "why": item.detail}
        for item in done.skipped[:ROWS_SHOWN]
    ]
    return {
        "events_pruned": done.events,
        "batches_pruned": done.batches,
        "discarded_pruned": done.discarded,
        "fences_removed": done.fences,
        "batches_skipped": len(done.skipped),
        "skipped": table(skipped),
        "is_dry_run": done.is_dry_run,
        "is_finished": done.is_finished,
        "retention_days": done.retention_days,
        "seconds": done.seconds,
        **oldest,
    }


def _of_purge(done: Purged, *, days: int) -> Metadata:
    """Show what was purged of Dagster's own events."""
    return {"events_purged": done.events, "runs": done.runs, "is_finished": done.is_finished, "history_days": days}
