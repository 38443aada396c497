"""What several topics show in the UI in the same way: tables, rates, and what a replay did.

What one topic shows stands with it. Invariant, here and there: numbers that plot, small tables and a summary to read;
no event contexts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from outbox_pipeline.operations.replay import Outcome, Replayed

Metadata = Mapping[str, dg.MetadataValue[Any] | int | float | str | bool]

ROWS_SHOWN = 20


def table(rows: Sequence[Mapping[str, int | float | str]]) -> dg.MetadataValue[Any]:
    """Return rows as a table, or the word none."""
    if not rows:
        return dg.MetadataValue.text("none")
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows])


def rate(count: int, seconds: float) -> float:
    """Return how many a second that was."""
    return round(count / seconds, 1) if seconds > 0 else 0.0


def of_replay(replayed: Sequence[Replayed]) -> Metadata:
    """Show what a day's replay did with each batch."""
    counts = {outcome: sum(item.outcome == outcome for item in replayed) for outcome in Outcome}
    told = [item for item in replayed if item.outcome != Outcome.PROVEN][:ROWS_SHOWN]
    return {
        "batches": len(replayed),
        "day_rows": sum(item.row_count for item in replayed),
        **{f"batches_{outcome.replace(' ', '_')}": count for outcome, count in counts.items()},
        "by_batch": table([_of_one(item) for item in told]),
    }


def _of_one(item: Replayed) -> dict[str, int | str]:
    return {
        "batch_id": str(item.batch_id),
        "outcome": str(item.outcome),
        "rows": item.row_count,
        "detail": item.detail,
    }
