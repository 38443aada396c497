"""Fence out inserts that may still be on their way, before the log's table changes.

A new table has forgotten every token, so a repeated insert of a batch would stand there twice. Invariant: before the
exchange ClickHouse refuses every attempt that the ledger knows of and that has ended, on each batch whose events are
still in the outbox; the next attempt on a batch is let through. Those of batches that were pruned had their deadline
long ago.
"""

from uuid import UUID

from outbox_pipeline.clickhouse.batch_contents import fenced_attempts
from outbox_pipeline.clickhouse.fences import FIRST, add_fences
from outbox_pipeline.postgres import log_move as ledger
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.stores import Stores

_BATCHES_A_STEP = 5_000


class Fencing:
    """The fences of a ledger's batches as ClickHouse has them, and those that are still to be raised."""

    def __init__(self, stores: Stores) -> None:
        """Read what there is."""
        self._stores = stores
        self._raised: dict[UUID, int] = {}
        for found in fenced_attempts(stores.client):
            self._raised |= found

    def raise_all(self, *, is_alone: bool) -> None:
        """Raise what is missing; of batches that are not processed only where no attempt can begin or is at work."""
        after = FIRST
        while True:
            with ledger_transaction(self._stores.engine) as connection:
                found = ledger.read_attempted(connection, after=after, limit=_BATCHES_A_STEP)
            due = {
                each.batch_id: each.fence
                for each in found
                if (is_alone or each.is_processed) and each.fence > max(1, self._raised.get(each.batch_id, 0))
            }
            if due:
                add_fences(self._stores.client, due)
                self._raised |= due
            if len(found) < _BATCHES_A_STEP:
                return
            after = found[-1].batch_id
