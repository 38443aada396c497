"""Reconciliation in the UI: a check a day, and a job that compares many days in one run.

The check is run by itself for one day, after each run for a day, and reported for all its days by the job, which
`reconcile_daily` starts. Comparing costs a few queries however many batches a day has; nothing is repaired unless the
job is told to.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date, timedelta
from functools import partial, reduce
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from pydantic import Field

from outbox_pipeline.counts import counted
from outbox_pipeline.days import Window
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.names import shortened
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.findings import DayTotals, Difference, Reconciled
from outbox_pipeline.operations.reconcile.repair import Repaired, repair
from outbox_pipeline.orchestration.assets import EVENT_LOG
from outbox_pipeline.orchestration.partitions import days_of, deliverable_days, nearest_day, recorded_days
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.orchestration.run_config import literal
from outbox_pipeline.orchestration.run_limits import comparison_seconds, move_limit, redelivery_seconds
from outbox_pipeline.orchestration.run_tags import TOLD_BY_CHECK_TAG, in_background, max_runtime
from outbox_pipeline.orchestration.shared_settings import settings_tag
from outbox_pipeline.orchestration.shown import ROWS_SHOWN, Metadata, table
from outbox_pipeline.orchestration.step_failures import one_sentence
from outbox_pipeline.settings import load_settings, today
from outbox_pipeline.times import parse_day

RECONCILED = "reconciled"

_PARTITION_TAG = "dagster/partition"


class ReconcileConfig(dg.Config):
    """Which days are compared, and what is done about what differs."""

    first_day: str = Field(default="", description="First UTC day. Empty: OUTBOX_RECONCILE_DAYS days before today.")
    last_day: str = Field(
        default="", description="Last UTC day, included. Empty: yesterday, or the outbox's first day."
    )
    repair: bool = Field(
        default=False,
        description=(
            "Deliver differing batches again and put untracked events back: those neither unclaimed nor in a gap, a "
            "batch or quarantine."
        ),
    )
    by_type: bool = Field(
        default=False, description="Compare by event type too; reads all events of the days in PostgreSQL."
    )

    def window(self) -> Window:
        """Return the days, never beyond those that have a partition.

        Without days they are the last OUTBOX_RECONCILE_DAYS before today, on the ledger's first day that one. Raises
        UsageError for a word that is no day, ConfigurationError when no day is left of those that were given: comparing
        nothing would look well.
        """
        first_there, last_there = deliverable_days()
        last = parse_day(self.last_day, "last_day") if self.last_day else nearest_day(today() - timedelta(days=1))
        days = load_settings().reconcile_days
        first = parse_day(self.first_day, "first_day") if self.first_day else _before(last, days - 1)
        window = Window(max(first, first_there), min(last, last_there))
        if (self.first_day or self.last_day) and window.first_day > window.last_day:
            raise ConfigurationError(f"No day from {first} to {last} has a partition: nothing would be compared.")
        return window


def _before(day: date, days: int) -> date:
    # The calendar begins with the year 1.
    return date.fromordinal(max(1, day.toordinal() - days))


def _check_of_a_day(function: Callable[..., Any]) -> dg.AssetChecksDefinition:
    with warnings.catch_warnings():
        # A preview in Dagster 1.13. Without it each day's check would be shown as planned for ever.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        decorate = dg.asset_check(
            asset=EVENT_LOG,
            name=RECONCILED,
            partitions_def=recorded_days,
            description=(
                "PostgreSQL and ClickHouse agree on this day: batches, rows, checksums, no untracked events. Red: "
                "do what its text says; most of it is repaired by materializing the day. Yellow: rows under batch ids "
                "that the ledger does not know. "
                "reconcile_daily keeps it fresh."
            ),
        )
        return decorate(function)


@_check_of_a_day
def reconciled(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
    """Compare the days that the partition stands for and change nothing; part of each run for a day, at its end.

    Without a partition, as the button *Execute all* starts it, today and yesterday are compared, each reported for
    itself too.
    """
    run = context.op_execution_context.run
    if _PARTITION_TAG not in run.tags:
        yield from _check_of_latest_days(context.op_execution_context, pipeline)
        return
    move_limit(context.op_execution_context.instance, run.run_id, comparison_seconds(1))
    day = date.fromisoformat(run.tags[_PARTITION_TAG])
    found = reconcile(pipeline.stores, days_of(day))
    totals = found.total(day)
    yield dg.AssetCheckResult(
        passed=totals.is_clean,
        severity=_severity(totals),
        description=_told(totals),
        metadata=_of_day(totals, found, None, days=found.window),
    )


def _check_of_latest_days(context: dg.OpExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
    last = today()
    window = Window(min(nearest_day(last - timedelta(days=1)), last), last)
    move_limit(context.instance, context.run_id, comparison_seconds(window.day_count))
    with one_sentence():
        found = reconcile(pipeline.stores, window)
    yield from _evaluations(context, found, None)
    days = _each_day(found)
    # Of an AssetCheckResult Dagster would look up the materialization that it is about, by the partition of the run.
    yield dg.AssetCheckEvaluation(
        asset_key=EVENT_LOG,
        check_name=RECONCILED,
        passed=all(day.is_clean for day in days),
        severity=_worst(days),
        blocking=False,
        description=" ".join(f"{day.day}: {_told(day)}" for day in days),
        metadata=dict(_of_day(reduce(DayTotals.plus, days), found, None, days=window)),
    )
    yield dg.Output(None)


@literal
@dg.op(out=dg.Out(dg.Nothing), tags={"kind": "clickhouse"})
def compare_days(context: dg.OpExecutionContext, config: ReconcileConfig, pipeline: PipelineResource):  # type: ignore[no-untyped-def]
    """Compare all the days at once, repair what differs if told to, and report the check `reconciled` of each day.

    Where rows or batches are broken afterwards the run fails with a sentence; the check is what alerts tell of. A run
    that dies has repaired some batches and left the others as they were; run it again. A redelivery that fails is in
    the ledger, and outbox_sensor takes it up.
    """
    instance, redelivery = context.instance, redelivery_seconds(pipeline.settings)
    with one_sentence():
        window = config.window()
        move_limit(instance, context.run_id, comparison_seconds(window.day_count) + redelivery)
        found = reconcile(pipeline.stores, window, by_type=config.by_type)
        repaired = None
        if config.repair:
            again = partial(move_limit, instance, context.run_id, redelivery)
            repaired = repair(pipeline.stores, found, run_id=context.run_id, on_batch=again)
    # Yielded, because what a step that fails has only logged is lost.
    yield from _evaluations(context, found, repaired)
    for sentence in [] if repaired is None else repaired.left:
        context.log.warning(sentence)
    for rows in found.unknown:
        context.log.warning(rows.sentence)
    left = [_after_repair(totals, found, repaired) for totals in _each_day(found)]
    broken = [day for day in left if not day.is_whole]
    if broken:
        context.instance.add_run_tags(context.run_id, {TOLD_BY_CHECK_TAG: RECONCILED})
        said = " ".join(f"{day.day}: {_told(day)}" for day in broken[:ROWS_SHOWN])
        raise dg.Failure(said, metadata=of_reconciled(found, repaired), allow_retries=False)
    yield dg.Output(None, metadata=of_reconciled(found, repaired))


def _evaluations(
    context: dg.OpExecutionContext, found: Reconciled, repaired: Repaired | None
) -> Iterator[dg.AssetCheckEvaluation]:
    # Days that differ come last: alerts read the latest results only, and of many days would miss an early one.
    for totals in sorted(_each_day(found), key=lambda day: not _after_repair(day, found, repaired).is_clean):
        yield _evaluation(totals, found, repaired, target=_latest_materialization(context.instance, totals.day))


@dg.job(
    description=(
        "Compare PostgreSQL with ClickHouse over many days in one run and report the check reconciled of each day. Run "
        "as it is it takes the last OUTBOX_RECONCILE_DAYS days and changes nothing; with repair: true it delivers "
        "differing batches again and touches no other. A failed run says which days are broken."
    ),
    run_tags=max_runtime(comparison_seconds(load_settings().reconcile_days))
    | in_background("reconcile", priority=-1)
    | settings_tag(load_settings()),
)
def reconcile_days() -> None:
    """Compare what its config chooses."""
    compare_days()


reconcile_daily = dg.ScheduleDefinition(
    name="reconcile_daily",
    job=reconcile_days,
    cron_schedule="30 1 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description=(
        "Compares the last OUTBOX_RECONCILE_DAYS days before today every night at 01:30 UTC and reports the check "
        "reconciled of each day. It repairs nothing: a red day's text says what to do."
    ),
)


def _each_day(found: Reconciled) -> list[DayTotals]:
    window = found.window
    days = [window.first_day + timedelta(days=n) for n in range((window.last_day - window.first_day).days + 1)]
    totals = [found.day(day) for day in days]
    first, last = deliverable_days()
    # Rows of a day that has no partition (1970: inserted without recorded_at) would be shown nowhere.
    rows_without_partition = sum(rows.row_count for rows in found.unknown if not first <= rows.day <= last)
    if rows_without_partition and totals:
        totals[-1] = replace(totals[-1], unknown_rows=totals[-1].unknown_rows + rows_without_partition)
    return totals


def _latest_materialization(
    instance: dg.DagsterInstance, day: date
) -> AssetCheckEvaluationTargetMaterializationData | None:
    # A result that names no materialization counts as older than the day's latest, and its day is shown as missing.
    wanted = dg.AssetRecordsFilter(asset_key=EVENT_LOG, asset_partitions=[day.isoformat()])
    for record in instance.fetch_materializations(wanted, limit=1).records:
        return AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
    return None


def _evaluation(
    totals: DayTotals,
    found: Reconciled,
    repaired: Repaired | None,
    *,
    target: AssetCheckEvaluationTargetMaterializationData | None,
) -> dg.AssetCheckEvaluation:
    after = _after_repair(totals, found, repaired)
    return dg.AssetCheckEvaluation(
        asset_key=EVENT_LOG,
        check_name=RECONCILED,
        partition=totals.day.isoformat(),
        target_materialization_data=target,
        passed=after.is_clean,
        severity=_severity(after),
        blocking=False,
        description=_told(after),
        metadata=dict(_of_day(totals, found, repaired)),
    )


def _after_repair(totals: DayTotals, found: Reconciled, repaired: Repaired | None) -> DayTotals:
    if repaired is None:
        return totals
    done = {item.batch_id for item in repaired.redelivered}
    left = [item for item in found.differences if item.day == totals.day and item.batch.batch_id not in done]
    beyond = sum(item.is_pruned for item in left)
    late = 0 if repaired.moved else totals.late_events
    return replace(totals, differing=len(left), differing_pruned=beyond, stray_events=0, late_events=late)


def _worst(days: Sequence[DayTotals]) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.WARN if all(day.is_whole for day in days) else dg.AssetCheckSeverity.ERROR


def _severity(totals: DayTotals) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.WARN if totals.is_whole else dg.AssetCheckSeverity.ERROR


def _told(totals: DayTotals) -> str:
    said = [f"{totals.sentence}."]
    if totals.is_repairable:
        said.append("Materialize this day to repair it.")
    if totals.differing_pruned:
        said.append(
            f"Of the batches that differ, {totals.differing_pruned:,} cannot be sent again, because their events are "
            "pruned: restore their rows in ClickHouse from a backup."
        )
    return " ".join(said)


def _of_day(totals: DayTotals, found: Reconciled, repaired: Repaired | None, *, days: Window | None = None) -> Metadata:
    """Show one day on both sides: numbers that plot, the batches that differ, and what was done about them.

    *days* are those that the totals are about, when there are others beside their own.
    """
    differences = [item for item in found.differences if item.day in (days or Window(totals.day, totals.day))]
    outcomes = {} if repaired is None else {item.batch_id: item.outcome for item in repaired.batches}
    return {
        "batches": totals.batches,
        "batches_differing": totals.differing,
        "rows_expected": totals.expected_rows,
        "rows_found": totals.found_rows,
        "rows_missing": sum(item.missing for item in differences),
        "rows_doubled": sum(item.doubled for item in differences),
        "rows_misplaced": sum(item.misplaced + item.other_generation for item in differences),
        "rows_of_unknown_batches": totals.unknown_rows,
        "events_in_no_place": totals.stray_events,
        "events_late": totals.late_events,
        "events_in_quarantine": totals.held_events,
        "batches_on_their_way": totals.open_batches,
        "batches_parked": totals.parked_batches,
        "batches_pruned": totals.pruned_batches,
        "checksum": dg.MetadataValue.text(f"{totals.found_checksum} (expected {totals.expected_checksum})"),
        "differing_batches": table(
            [
                {
                    **_of_difference(item),
                    **({} if repaired is None else {"repair": str(outcomes.get(item.batch.batch_id, ""))}),
                }
                for item in differences[:ROWS_SHOWN]
            ]
        ),
    }


def of_reconciled(found: Reconciled, repaired: Repaired | None) -> Metadata:
    """Show a whole comparison, with a summary to read."""
    types: list[dict[str, int | str]] = [
        {
            "day": str(item.day),
            "event_type": shortened(item.event_type),
            "expected": item.expected,
            "found": item.found,
        }
        for item in found.types
        if item.expected != item.found
    ]
    return {
        "days": len(found.days),
        "batches": sum(day.batches for day in found.days),
        "batches_differing": len(found.differences),
        "rows_expected": sum(day.expected_rows for day in found.days),
        "rows_found": sum(day.found_rows for day in found.days),
        "rows_of_unknown_batches": sum(rows.row_count for rows in found.unknown),
        "events_in_no_place": sum(item.event_count for item in found.untracked),
        "batches_redelivered": 0 if repaired is None else len(repaired.redelivered),
        "events_put_back": 0 if repaired is None else repaired.put_back,
        "seconds": round(found.seconds, 3),
        "types_differing": table(types[:ROWS_SHOWN]),
        "summary": dg.MetadataValue.md(_summary(found, repaired)),
    }


def _of_difference(item: Difference) -> dict[str, int | str]:
    return {
        "batch_id": str(item.batch.batch_id),
        "expected": item.expected,
        "found": item.found,
        "missing": item.missing,
        "doubled": item.doubled,
        "misplaced": item.misplaced,
        "other_generation": item.other_generation,
        "altered": item.altered,
    }


def _summary(found: Reconciled, repaired: Repaired | None) -> str:
    lines = [f"**{found.window.first_day} to {found.window.last_day}**", ""]
    lines += [f"- {day.day}: {day.sentence}" for day in found.days[-ROWS_SHOWN:]]
    if repaired is not None:
        lines += [
            "",
            f"Delivered again: {counted(len(repaired.redelivered), 'batch', 'batches')}. "
            f"Put back: {counted(repaired.put_back, 'event')}.",
        ]
        if repaired.moved:
            lines.append(f"Moved to new positions: {counted(repaired.moved, 'event')}.")
        lines += [f"- {sentence}" for sentence in repaired.left[:ROWS_SHOWN]]
    return "\n".join(lines)
