"""What runs show in the UI: numbers that plot, small tables, a summary to read. No event contexts."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from outbox_pipeline.monitoring.health import Answer
from outbox_pipeline.monitoring.status import Status
from outbox_pipeline.names import shortened
from outbox_pipeline.operations.quarantine import Held, Requeued
from outbox_pipeline.operations.reconcile.findings import DayTotals, Difference, Reconciled, Window
from outbox_pipeline.operations.reconcile.repair import Repaired
from outbox_pipeline.operations.replay import Outcome, Replayed
from outbox_pipeline.operations.retention import Pruned
from outbox_pipeline.orchestration.host.history import Purged
from outbox_pipeline.relay.delivery import Extracted, Loaded, Marked, Validated

Metadata = Mapping[str, dg.MetadataValue[Any] | int | float | str | bool]

_SAMPLE_SIZE = 10
_TYPES_SHOWN = 20


def of_extract(extracted: Extracted) -> Metadata:
    """Show what came out of PostgreSQL."""
    return {
        "events": extracted.event_count,
        "context_bytes": extracted.context_bytes,
        "seconds": round(extracted.seconds, 3),
        "events_per_second": _rate(extracted.event_count, extracted.seconds),
    }


def of_validate(validated: Validated) -> Metadata:
    """Show how many events were accepted, their types, and a sample of the rejected with reasons."""
    return {
        "accepted": validated.accepted_count,
        "rejected": len(validated.rejected),
        "decided_by": "an earlier attempt" if validated.was_frozen else "this attempt",
        "event_types": _table(
            [
                {"event_type": shortened(name), "events": count}
                for name, count in list(validated.event_types.items())[:_TYPES_SHOWN]
            ]
        ),
        "rejected_sample": _table(
            [
                {"position": position, "reasons": ", ".join(reasons)}
                for position, reasons in list(validated.rejected.items())[:_SAMPLE_SIZE]
            ]
        ),
        "reasons": dg.MetadataValue.json(validated.reasons),
    }


def of_load(loaded: Loaded) -> Metadata:
    """Show what was sent and what ClickHouse proved."""
    return {
        "rows": loaded.row_count,
        "sent_bytes": loaded.sent_bytes,
        "generation": dg.MetadataValue.text(str(loaded.generation)),
        "was_already_there": loaded.was_there,
        "seconds": round(loaded.seconds, 3),
        "rows_per_second": _rate(loaded.row_count, loaded.seconds),
        "proof": dg.MetadataValue.json({name: str(value) for name, value in loaded.proof.to_json().items()}),
    }


def of_mark(marked: Marked, *, day_row_count: int) -> Metadata:
    """Show the batch as one point of the asset's plots."""
    return {
        "rows_loaded": marked.accepted_count,
        "events_quarantined": marked.quarantined_count,
        "lag_seconds": round(marked.lag_seconds, 3),
        "delivery_seconds": round(marked.seconds, 3),
        "rows_per_second": _rate(marked.accepted_count, marked.seconds),
        "context_bytes": marked.context_bytes,
        "dagster/partition_row_count": day_row_count,
        "processed_at": dg.MetadataValue.timestamp(marked.processed_at),
    }


def of_replay(replayed: Sequence[Replayed]) -> Metadata:
    """Show what a day's replay did with each batch."""
    counts = {outcome: sum(item.outcome == outcome for item in replayed) for outcome in Outcome}
    told = [item for item in replayed if item.outcome != Outcome.PROVEN][:_TYPES_SHOWN]
    return {
        "batches": len(replayed),
        "day_rows": sum(item.row_count for item in replayed),
        **{f"batches_{outcome.replace(' ', '_')}": count for outcome, count in counts.items()},
        "by_batch": _table([_of_one(item) for item in told]),
    }


def of_day(totals: DayTotals, found: Reconciled, repaired: Repaired | None, *, days: Window | None = None) -> Metadata:
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
        "differing_batches": _table(
            [
                {
                    **_of_difference(item),
                    **({} if repaired is None else {"repair": str(outcomes.get(item.batch.batch_id, ""))}),
                }
                for item in differences[:_TYPES_SHOWN]
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
        "events_in_no_place": sum(stray.event_count for stray in found.strays),
        "batches_redelivered": 0 if repaired is None else len(repaired.redelivered),
        "events_put_back": 0 if repaired is None else repaired.put_back,
        "seconds": round(found.seconds, 3),
        "types_differing": _table(types[:_TYPES_SHOWN]),
        "summary": dg.MetadataValue.md(_summary(found, repaired)),
    }


def of_held(held: Held) -> Metadata:
    """Show how many events are held, or were before the change, for which reasons and since when."""
    since = {} if held.oldest_at is None else {"oldest_held_at": dg.MetadataValue.timestamp(held.oldest_at)}
    return {"held": held.count, "reasons": dg.MetadataValue.json(held.by_reason), **since}


def of_answer(answer: Answer) -> Metadata:
    """Show the numbers behind a check of the pipeline's health, and what exactly it found."""
    found = {"found": _table(answer.rows)} if answer.rows else {}
    return {**answer.numbers, **found}


def of_status(status: Status) -> Metadata:
    """Show the outbox as one point of its plots."""
    return {
        "pending": status.pending,
        "in_flight": status.in_flight,
        "parked": status.parked,
        "quarantined": status.quarantined,
        "undelivered": status.undelivered,
        "recorded_in_the_future": status.future,
        "lag_seconds": round(status.lag_seconds, 3),
        "open_batches": sum(status.open_batches.values()),
        "gaps": status.gaps,
    }


def of_requeue(held: Held, done: Requeued) -> Metadata:
    """Show what was requeued and what stays held."""
    refused: list[dict[str, int | str]] = [
        {"batch_id": str(item.batch_id), "events": item.event_count, "why": item.why}
        for item in done.refused[:_TYPES_SHOWN]
    ]
    return {**of_held(held), "requeued": done.count, "refused": _table(refused)}


def of_prune(done: Pruned) -> Metadata:
    """Show what was pruned, what was not and why, and how far back the outbox reaches now."""
    oldest = {} if done.oldest_kept_at is None else {"oldest_kept_at": dg.MetadataValue.timestamp(done.oldest_kept_at)}
    skipped: list[dict[str, int | str]] = [
        {"batch_id": str(item.batch_id), "day": str(item.recorded_on), "events": item.event_count, "why": item.detail}
        for item in done.skipped[:_TYPES_SHOWN]
    ]
    return {
        "events_pruned": done.events,
        "batches_pruned": done.batches,
        "discarded_pruned": done.discarded,
        "fences_removed": done.fences,
        "batches_skipped": len(done.skipped),
        "skipped": _table(skipped),
        "is_dry_run": done.is_dry_run,
        "is_finished": done.is_finished,
        "retention_days": done.retention_days,
        "seconds": done.seconds,
        **oldest,
    }


def of_purge(done: Purged, *, days: int) -> Metadata:
    """Show what was purged of Dagster's own events."""
    return {"events_purged": done.events, "runs": done.runs, "is_finished": done.is_finished, "history_days": days}


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
    lines += [f"- {day.day}: {day.sentence}" for day in found.days[-_TYPES_SHOWN:]]
    if repaired is not None:
        lines += ["", f"Delivered again: {len(repaired.redelivered)} batches. Put back: {repaired.put_back} events."]
        lines += [f"- {sentence}" for sentence in repaired.left[:_TYPES_SHOWN]]
    return "\n".join(lines)


def _of_one(item: Replayed) -> dict[str, int | str]:
    return {
        "batch_id": str(item.batch_id),
        "outcome": str(item.outcome),
        "rows": item.row_count,
        "detail": item.detail,
    }


def _table(rows: Sequence[Mapping[str, int | float | str]]) -> dg.MetadataValue[Any]:
    if not rows:
        return dg.MetadataValue.text("none")
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows])


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 1) if seconds > 0 else 0.0
