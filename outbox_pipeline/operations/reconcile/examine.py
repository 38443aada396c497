"""Count exactly how one differing batch differs, position by position.

Only for batches already known to differ: it reads the positions of all their rows, one line each.
"""

from bisect import bisect_right
from dataclasses import replace

from outbox_pipeline.batches import Proof
from outbox_pipeline.clickhouse.reconcile import shown_positions
from outbox_pipeline.operations.reconcile.findings import Difference
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.reconcile import read_stretches
from outbox_pipeline.stores import Stores

#: What is said of the sums of version 1.
_SUMS = {"id_sum": "ids", "time_sum": "event times", "context_sum": "contexts"}
#: What is said of each column's sum.
COLUMNS = {
    "event_type": "event types",
    "event_date_time": "event times",
    "environment": "environments",
    "event_context": "contexts",
    "metadata_version": "versions",
    "position": "positions",
    "recorded_at": "record times",
    "trace_context": "traces",
}


def examine(stores: Stores, difference: Difference, found: Proof) -> Difference:
    """Return the difference with its rows counted; *found* is what all rows of the batch add up to."""
    with ledger_transaction(stores.engine) as connection:
        stretches = read_stretches(connection, difference.batch.batch_id)
    starts = [first for first, _ in stretches]
    there = doubled = misplaced = other_generation = 0
    for position, current, other in shown_positions(stores.client, difference.batch):
        nth = bisect_right(starts, position) - 1
        other_generation += other
        if nth < 0 or position >= stretches[nth][1]:
            misplaced += current
        elif current:
            there += 1
            doubled += current - 1
    missing = difference.expected - there
    is_complete = not (missing or doubled or misplaced or other_generation)
    return replace(
        difference,
        is_examined=True,
        missing=missing,
        doubled=doubled,
        misplaced=misplaced,
        other_generation=other_generation,
        altered=_altered(difference, found) if is_complete else "",
    )


def _altered(difference: Difference, found: Proof) -> str:
    expected = difference.batch.proof
    assert expected is not None
    words = [word for name, word in _SUMS.items() if getattr(expected, name) != getattr(found, name)]
    if expected.has_rows_of(found):
        words += [COLUMNS[name] for name in expected.altered(found)]
    return ", ".join(dict.fromkeys(words))
