"""Compare batches by event type, and find events that hide at positions of batches cut before them.

Both read the events themselves in PostgreSQL, a million at a time.
"""

from collections.abc import Iterator, Sequence
from uuid import UUID

from outbox_pipeline.batches import Batch, HeldType
from outbox_pipeline.clickhouse.proof import proof_of_table
from outbox_pipeline.clickhouse.reconcile import shown_types
from outbox_pipeline.operations.reconcile.findings import LateEvents
from outbox_pipeline.operations.replay_choice import pieces
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.extract import extract_events, reading_seconds
from outbox_pipeline.postgres.reconcile import held_types, read_processed
from outbox_pipeline.stores import Stores

#: Count and sum of positions of each event type.
Types = dict[str, tuple[int, int]]


def compare_types(
    stores: Stores, batches: Sequence[Batch], late: list[LateEvents]
) -> Iterator[tuple[Batch, Types, Types]]:
    """Yield each batch with its types in PostgreSQL and in ClickHouse, and add late events to *late*.

    Batches of which PostgreSQL does not hold every event any more are left out: their types are not known.
    """
    for some in pieces([batch for batch in batches if batch.pruned_at is None]):
        found = _ask(stores, some, late)
        suspects = [batch.batch_id for batch, held, shown in found if held != shown]
        if suspects:
            with ledger_transaction(stores.engine) as connection:
                fresh = read_processed(connection, suspects)
            found = [item for item in found if item[0].batch_id not in suspects] + _ask(stores, fresh, [])
        yield from found


def late_events(stores: Stores, batches: Sequence[Batch]) -> list[LateEvents]:
    """Return the events that stand at positions of these batches and were recorded after they were cut."""
    return [late for some in pieces(batches) for late in _late(stores, some, _held(stores, some))]


def _ask(stores: Stores, batches: Sequence[Batch], late: list[LateEvents]) -> list[tuple[Batch, Types, Types]]:
    rows = _held(stores, batches)
    late += _late(stores, batches, rows)
    held: dict[UUID, Types] = {}
    for row in rows:
        held.setdefault(row.batch_id, {})[row.event_type] = (row.event_count, row.position_sum)
    shown: dict[UUID, Types] = {}
    for there in shown_types(stores.client, batches):
        shown.setdefault(there.batch_id, {})[there.event_type] = (there.row_count, there.position_sum)
    return [
        (batch, held.get(batch.batch_id, {}), shown.get(batch.batch_id, {}))
        for batch in batches
        if sum(count for count, _ in held.get(batch.batch_id, {}).values()) == batch.accepted_count
    ]


def _held(stores: Stores, batches: Sequence[Batch]) -> list[HeldType]:
    with ledger_transaction(stores.engine) as connection:
        return held_types(connection, [batch.batch_id for batch in batches])


def _late(stores: Stores, batches: Sequence[Batch], rows: Sequence[HeldType]) -> list[LateEvents]:
    known = {batch.batch_id: batch for batch in batches}
    suspects = {row.batch_id for row in rows if row.late_count}
    foreign = {batch_id for batch_id in suspects if not holds_its_own(stores, known[batch_id])}
    return [
        LateEvents(row.batch_id, known[row.batch_id].recorded_on, row.late_count)
        for row in rows
        if row.late_count and row.batch_id in foreign
    ]


def holds_its_own(stores: Stores, batch: Batch) -> bool:
    """Tell whether outbox.event holds the very events that were proved: then only a clock was set back meanwhile."""
    if batch.pruned_at is not None:
        return False
    events = extract_events(stores.engine, batch.batch_id, seconds=reading_seconds(batch, stores.limits))
    return batch.proof is not None and not batch.proof.differences(proof_of_table(events))
