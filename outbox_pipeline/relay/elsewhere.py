"""Events that another instance of the ledger delivered, published here once more under their ids.

After a failover that lost commits an application repeats what it lost, under the `event_id` that makes a repetition
harmless; but the ledger that would know it has lost the event. Its adoption has kept the id (`operations.adopt`).

Invariant: an event is held for this reason only when ClickHouse shows its row at that moment. Where the row is gone,
the event here is what is left, and is delivered.
"""

from uuid import UUID

from outbox_pipeline.clickhouse.batch_contents import which_shown
from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.reconcile import batches_with
from outbox_pipeline.postgres.elsewhere import find_in_batch
from outbox_pipeline.relay.witness import LedgerTransaction

#: Reason code of these events; words follow after a colon.
ALREADY_DELIVERED = "already_delivered"


def find_already_delivered(client: EventLogClient, transaction: LedgerTransaction, batch_id: UUID) -> dict[int, str]:
    """Return the positions of a batch whose events ClickHouse has from another instance, each with the reason."""
    with transaction() as connection:
        found = find_in_batch(connection, batch_id)
    if not found:
        return {}
    there = which_shown(client, [(item.batch_id, item.there, item.event_id) for item in found])
    # A row that is gone may stand under another batch: by hand, or since a later failover.
    moved = {item.event_id for item in found} - there
    others = batches_with(client, moved) if moved else {}
    holding = {item.event_id: sorted(others.get(item.event_id, set()) - {batch_id}) for item in found}
    return {
        item.position: _reason(item.batch_id if item.event_id in there else holding[item.event_id][0])
        for item in found
        if item.event_id in there or holding[item.event_id]
    }


def _reason(batch_id: UUID) -> str:
    return (
        f"{ALREADY_DELIVERED}: ClickHouse has this event in batch {batch_id}, delivered by another instance before "
        "this ledger was adopted; discard it here, or publish it under another event_id if it is another fact"
    )
