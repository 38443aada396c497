"""What the steps of a delivery show: numbers that plot, small tables, and a summary of the run in Markdown.

Invariant: counts, ids, names and times only, never an event's content; and whatever an event is called, it stays within
its cell.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import dagster as dg

from outbox_pipeline.batches import BATCH_ID_TAG, Batch
from outbox_pipeline.counts import counted
from outbox_pipeline.names import shortened
from outbox_pipeline.operations.replay import Outcome, Replayed
from outbox_pipeline.orchestration.partitions import nearest_day
from outbox_pipeline.orchestration.shown import ROWS_SHOWN, Metadata, rate, table
from outbox_pipeline.relay.results import Extracted, Loaded, Marked, Validated, count_reasons
from outbox_pipeline.relay.split import Split

_SAMPLE_SIZE = 10
_NAMES_SHOWN = 5
_NAME_LENGTH = 60


def of_extract(extracted: Extracted) -> Metadata:
    """Show what came out of PostgreSQL."""
    return {
        "events": extracted.event_count,
        "context_bytes": extracted.context_bytes,
        "seconds": round(extracted.seconds, 3),
        "events_per_second": rate(extracted.event_count, extracted.seconds),
    }


def of_validate(validated: Validated) -> Metadata:
    """Show how many events were accepted, their types, and a sample of the rejected with reasons."""
    return {
        "accepted": validated.accepted_count,
        "rejected": len(validated.rejected),
        "decided_by": "an earlier attempt" if validated.was_frozen else "this attempt",
        "event_types": table(
            [
                {"event_type": shortened(name), "events": count}
                for name, count in list(validated.event_types.items())[:ROWS_SHOWN]
            ]
        ),
        "rejected_sample": table(
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
        "load_seconds": round(loaded.seconds, 3),
        "proof": dg.MetadataValue.json(_as_text(loaded.proof.to_json())),
    }


def of_split(split: Split) -> Metadata:
    """Show that the batch was given back instead."""
    return {"split_events": split.event_count, "summary": dg.MetadataValue.md(f"**Split.** {split.sentence}")}


def _as_text(proof: Mapping[str, Any]) -> dict[str, Any]:
    # A browser's numbers end at 2**53.
    return {name: str(value) if isinstance(value, int) else _as_text(value) for name, value in proof.items()}


def of_mark(marked: Marked, *, day_row_count: int) -> Metadata:
    """Show the batch as one point of the asset's plots."""
    return {
        "rows_loaded": marked.accepted_count,
        "events_quarantined": marked.quarantined_count,
        "lag_seconds": round(marked.lag_seconds, 3),
        "delivery_seconds": round(marked.seconds, 3),
        "rows_per_second": rate(marked.accepted_count, marked.seconds),
        "context_bytes": marked.context_bytes,
        "dagster/partition_row_count": day_row_count,
        "processed_at": dg.MetadataValue.timestamp(marked.processed_at),
    }


def summary_of_batch(batch: Batch, marked: Marked, event_types: Mapping[str, int] | None) -> dg.MarkdownMetadataValue:
    """Say what was delivered and refused, how late, and where to look on; *batch* is its row before it was marked.

    *event_types* is None where another process validated the batch.
    """
    lines = [
        f"**{counted(marked.accepted_count, 'event')} delivered and proved**, {marked.quarantined_count:,} refused.",
        "",
        "| | |",
        "|---|---|",
        f"| types | {_counted(event_types) if event_types is not None else 'see the step validate_batch'} |",
        f"| refused | {_counted(count_reasons(batch.rejected or {}))} |",
        f"| oldest event | {_waited(marked.lag_seconds)} |",
        f"| took | {marked.seconds:,.1f} s for {marked.context_bytes:,} bytes of text |",
        f"| batch | `{batch.batch_id}`, attempt {batch.attempt}, generation {batch.generation} |",
        f"| positions | {batch.first_position} to {batch.last_position}, recorded on {batch.recorded_on} |",
        "",
        f"[All attempts]({_runs_of(batch)}) · [The day]({_day(batch)})",
    ]
    if marked.quarantined_count:
        lines += ["", f"Look at the refused ones with `outbox quarantine list --batch {batch.batch_id}`."]
    return dg.MetadataValue.md("\n".join(lines))


def summary_of_day(replayed: Sequence[Replayed]) -> dg.MarkdownMetadataValue:
    """Say how many of a day's batches are proven, and what became of the others."""
    if not replayed:
        return dg.MetadataValue.md("**The day has no batches.** Nothing was recorded on it, or nothing is cut yet.")
    counts = {str(outcome): sum(item.outcome == outcome for item in replayed) for outcome in Outcome}
    rows = sum(item.row_count for item in replayed)
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items() if count)
    return dg.MetadataValue.md(f"**{counted(len(replayed), 'batch', 'batches')} with {counted(rows, 'row')}**: {told}.")


def _waited(seconds: float) -> str:
    if seconds < 0:
        return f"recorded {-seconds:,.1f} s ahead of PostgreSQL's clock"
    return f"waited {seconds:,.1f} s"


def _counted(counts: Mapping[str, int]) -> str:
    first = [f"{_cell(name)} {count:,}" for name, count in list(counts.items())[:_NAMES_SHOWN]]
    more = [f"{len(counts) - _NAMES_SHOWN:,} more"] if len(counts) > _NAMES_SHOWN else []
    return ", ".join(first + more) or "none"


def _cell(name: str) -> str:
    # Anything but a plain name could end the cell, or become a link or an image.
    plain = re.sub(r"[^\w.:\- ]", "�", name[:_NAME_LENGTH])
    return f"`{plain}{'…' if len(name) > _NAME_LENGTH else ''}`"


def _runs_of(batch: Batch) -> str:
    return f"/runs?q%5B%5D={quote(f'tag:{BATCH_ID_TAG}={batch.batch_id}', safe='')}"


def _day(batch: Batch) -> str:
    return f"/assets/event_log?view=partitions&partition={nearest_day(batch.recorded_on)}"
