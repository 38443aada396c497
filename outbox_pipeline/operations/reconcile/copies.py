"""Look whether rows that the ledger does not expect stand in the event log once more, before anybody deletes them.

Matched by event id alone: after a failover the same event may have been published again, at another position.

Invariant: a statement that deletes is told only where copies were found under batches that this ledger has delivered,
and it deletes no row of which it does not find a copy there itself when it runs. Other rows may be the only copy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.quoting import quoted_name
from outbox_pipeline.clickhouse.reconcile import batches_with, sample_ids
from outbox_pipeline.counts import counted
from outbox_pipeline.postgres import reconcile as ledger
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.stores import Stores

#: Batches that one statement names; what stands under others is told by the next comparison.
_MAX_NAMED = 20


@dataclass(frozen=True)
class Copies:
    """Of the events under a batch id: how many were looked at, and where else they are.

    `delivered`: under a batch that this ledger has delivered, some of which are `batches`. `unknown`: only under other
    batches that it does not know. `here`: in the outbox, published again and not delivered.
    """

    looked_at: int = 0
    delivered: int = 0
    batches: tuple[UUID, ...] = ()
    unknown: int = 0
    here: int = 0

    @property
    def sentence(self) -> str:
        """Say where else the events are."""
        count = "none" if not self.delivered else "all" if self.delivered == self.looked_at else f"{self.delivered:,}"
        verb = "stands" if self.delivered <= 1 else "stand"
        looked_at = counted(self.looked_at, "event")
        said = f"of {looked_at} looked at, {count} also {verb} under batches that this ledger has delivered"
        if self.unknown:
            said += f", {self.unknown:,} only under other batches that it does not know"
        if self.here:
            said += f", and {self.here:,} were published here again and not delivered"
        return said


def find_copies(stores: Stores, batch_ids: Sequence[UUID]) -> dict[UUID, Copies]:
    """Return for each of these batch ids where else its events are, by a sample of them. Changes nothing."""
    samples = sample_ids(stores.client, batch_ids)
    wanted = {event_id for sample in samples.values() for event_id in sample}
    if not wanted:
        return {}
    there = batches_with(stores.client, wanted)
    with ledger_transaction(stores.engine) as connection:
        delivered = ledger.which_processed(connection, {batch_id for some in there.values() for batch_id in some})
        here = ledger.which_here(connection, wanted)
    return {batch_id: _copies(batch_id, sample, there, delivered, here) for batch_id, sample in samples.items()}


def removal(client: EventLogClient, batch_id: UUID, copies: Copies) -> str:
    """Return the statement that deletes the rows under a batch id of which a copy stands under the named batches."""
    table = quoted_name(client.table)
    source = f"source = '{client.source}' AND "
    named = ", ".join(f"'{other}'" for other in copies.batches)
    return (
        f"ALTER TABLE {table} DELETE WHERE {source}batch_id = '{batch_id}' AND event_id IN "  # noqa: S608 - ids alone
        f"(SELECT event_id FROM {table} WHERE {source}batch_id IN ({named}))"
    )


def _copies(
    batch_id: UUID, sample: set[UUID], there: Mapping[UUID, set[UUID]], delivered: set[UUID], here: set[UUID]
) -> Copies:
    others = {event_id: there.get(event_id, set()) - {batch_id} for event_id in sample}
    known = {event_id: batches & delivered for event_id, batches in others.items()}
    named = sorted({other for batches in known.values() for other in batches})
    return Copies(
        looked_at=len(sample),
        delivered=sum(bool(batches) for batches in known.values()),
        batches=tuple(named[:_MAX_NAMED]),
        unknown=sum(bool(others[event_id]) and not known[event_id] for event_id in sample),
        here=sum(event_id in here and not known[event_id] for event_id in sample),
    )
