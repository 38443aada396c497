"""Find events that no cut takes because the sequence of positions went back, and have them delivered.

After a logical replication, a data-only restore or a `setval` it draws positions again. Where the old events are gone
from PostgreSQL new ones stand there then, in batches that are done; others have positions that the ledger has given up.
Setting the sequence forward finds none of them.

Invariant: an event is taken for hidden only when ClickHouse does not show it under the batch that had its position, and
it is moved in the transaction that found it, under the lock on `unclaimed`.
"""

from datetime import date

from sqlalchemy import Connection

from outbox_pipeline.clickhouse.batch_contents import shown_rows
from outbox_pipeline.logs import log
from outbox_pipeline.operations.reconcile.by_type import holds_its_own
from outbox_pipeline.postgres import adopt as adoption
from outbox_pipeline.postgres import cut, hidden
from outbox_pipeline.postgres import reconcile as ledger
from outbox_pipeline.postgres.conditions import read_conditions, require_own_cluster
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import read_batch
from outbox_pipeline.stores import Stores

#: Positions looked at in one statement.
_SLICE = 2_000_000


def find_hidden(connection: Connection, stores: Stores, *, looks_at_all: bool) -> None:
    """List the hidden events in a temporary table of this transaction, for `postgres.hidden` to name and move.

    Those of batches that were pruned are always found. With *looks_at_all* also those of batches that have their
    events, which reads every event of theirs; needed where PostgreSQL's own files do not vouch for the sequence.
    """
    for suspect in hidden.stage_hidden(connection, looks_at_all=looks_at_all):
        batch_id = suspect.batch_id
        if holds_its_own(stores, read_batch(connection, batch_id)):
            hidden.acquit(connection, batch_id)
            continue
        for rows in shown_rows(stores.client, batch_id, (suspect.first_position, suspect.last_position)):
            hidden.acquit_delivered(connection, batch_id, rows)


def put_back_untracked(connection: Connection) -> int:
    """Make events at positions that are in no place of the ledger unclaimed again; return how many."""
    first, last = ledger.untracked_bounds(connection, date.min, date.max)
    count = 0
    for start in range(first, last + 1, _SLICE):
        untracked = ledger.find_untracked(connection, start, min(start + _SLICE - 1, last))
        ledger.put_back(connection, untracked)
        count += sum(item.event_count for item in untracked)
    return count


def set_forward(connection: Connection, before: int, highest: int, *, dry_run: bool = False) -> int:
    """Keep new events off positions that are in use here or in ClickHouse; return where the sequence stands then.

    A position then names one event for ever.
    """
    if highest <= before:
        return before
    target = highest + adoption.SEQUENCE_MARGIN
    if not dry_run:
        adoption.set_sequence(connection, target)
    return target


def deliver_hidden(stores: Stores) -> int:
    """Set the sequence forward where it is behind, and have the next cuts take what hides; return how many events.

    Raises LedgerError when the ledger belongs to another cluster.
    """
    lock_timeout = stores.settings.lock_timeout_seconds
    # It waits for ClickHouse's answers between its statements.
    with ledger_transaction(stores.engine, lock_timeout_seconds=lock_timeout, idle_seconds=0) as connection:
        require_own_cluster(connection)
        cut.lock_unclaimed(connection)
        adoption.lift_limits(connection)
        known = read_conditions(connection).last_known
        find_hidden(connection, stores, looks_at_all=True)
        highest = max(known, adoption.highest_position(connection))
        set_forward(connection, cut.read_last_drawn(connection), highest)
        count = hidden.move_hidden(connection)
    if count:
        log().warning("hidden_events_moved", count=count)
    return count
