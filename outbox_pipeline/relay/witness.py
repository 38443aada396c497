"""ClickHouse as a witness of the ledger: it knows of deliveries that a ledger which was set back has forgotten.

A dump restored in place, a storage snapshot mounted again, a copy beside the living original: cluster, database and
timeline are what they were, and pending events may have been delivered. But the other instance has left its cuts in
ClickHouse, under numbers that this ledger gave to other batches, or never.

Invariant: no byte of a batch is sent before its number and id stand in ClickHouse and a later reading showed no cut at
or above that number, or under one of a batch that was open when the attempt began, which this ledger does not have. The
order is the guarantee: a number is committed in PostgreSQL before ClickHouse sees it, written before it is relied on,
and ClickHouse is read before PostgreSQL. So two processes of one ledger never stop each other, and of two instances
that cut the same events one at least sees the other.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from sqlalchemy import Connection, Engine

from outbox_pipeline.batches import Batch, LedgerIdentity
from outbox_pipeline.clickhouse.client import EventLogClient, ask
from outbox_pipeline.clickhouse.owner import Claim, holding, read_claims
from outbox_pipeline.clickhouse.witness import (
    ADOPTION,
    Cut,
    add_cuts,
    cuts_since,
    highest_number,
    latest_adoption,
    look_before_sending,
    newest_cuts,
)
from outbox_pipeline.counts import counted
from outbox_pipeline.errors import WitnessError
from outbox_pipeline.postgres import witness as ledger
from outbox_pipeline.postgres.conditions import read_ledger_id, require_own_cluster
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.relay.lost_log import require_log_version
from outbox_pipeline.relay.owner import claimed, require_owner, require_room
from outbox_pipeline.relay.points import Point, announce
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores

#: Cuts that a look without an attempt compares; the other instance's newest are among them.
_NEWEST = 1_000


class LedgerTransaction(Protocol):
    """Opens a transaction on the ledger."""

    def __call__(self) -> AbstractContextManager[Connection]:
        """Return the transaction as a block."""


@dataclass(frozen=True)
class Seen:
    """What ClickHouse had on record: whose the table is, and the newest cuts. PostgreSQL is read after it."""

    claims: Sequence[Claim]
    cuts: Sequence[Cut]


def witness_attempt(
    stores: Stores, transaction: LedgerTransaction, batch: Batch, identity: LedgerIdentity
) -> str | None:
    """Put the batch on record in ClickHouse and look whether the ledger is the only one that goes on from there.

    Returns the deadline of an insert that is sent now (`clickhouse.deadline`), None where ClickHouse showed no cut.
    Raises WitnessError when another one goes on; nothing may be sent then.
    """
    client = stores.client
    deadline: str | None = None
    number = batch.cut_number
    if number is None:
        with transaction() as connection:
            number = ledger.draw_number(connection, batch.batch_id)
            # Numbers that were given since the attempt began are below this one, too.
            identity = require_own_cluster(connection)
        announce(Point.NUMBERED)
    add_cuts(client, [Cut(number, batch.batch_id)], identity.ledger_id)
    announce(Point.WITNESSED)
    # The other instance may have cut the same events under the number of a batch here that is not sent yet.
    waiting = [other for other in identity.open_numbers if identity.floor <= other < number]
    blocks = look_before_sending(
        client, max(number, identity.floor), further=waiting, lease_seconds=stores.settings.lease_seconds
    )
    for cuts, not_after in blocks:
        deadline = not_after
        with transaction() as connection:
            require_known(connection, cuts)
    return deadline


def require_known(connection: Connection, cuts: Collection[Cut]) -> None:
    """Raise WitnessError when one of the cuts is of another instance; *cuts* were read from ClickHouse before."""
    foreign = foreign_cuts(connection, cuts)
    if foreign:
        raise WitnessError(foreign_sentence(min(foreign, key=lambda cut: cut.cut_number)))


def foreign_cuts(connection: Connection, cuts: Collection[Cut]) -> list[Cut]:
    """Return those of the cuts that are of another instance; *cuts* were read from ClickHouse before."""
    if not cuts:
        return []
    known = ledger.read_cuts(connection, [cut.cut_number for cut in cuts])
    return [cut for cut in cuts if _is_foreign(cut, known)]


def find_foreign(stores: Stores) -> list[Cut]:
    """Return all cuts of other instances that ClickHouse has on record from the latest adoption of this one on."""
    with ledger_transaction(stores.engine) as connection:
        floor = ledger.read_cuts(connection, []).floor
    found: list[Cut] = []
    for cuts in cuts_since(stores.client, floor):
        with ledger_transaction(stores.engine) as connection:
            found += foreign_cuts(connection, cuts)
    return found


def foreign_sentence(cut: Cut) -> str:
    """Say what a cut of another instance means and what to do."""
    if cut.batch_id == ADOPTION:
        return (
            f"Another instance of this ledger was adopted (number {cut.cut_number}) and goes on in its place, so "
            "nothing is cut or delivered here: stop this instance for good. Only if this one is to go on instead, stop "
            "the other one for good, then run 'outbox adopt' here."
        )
    return (
        "This ledger was set back by a restore, or another instance of it delivers into the same table: ClickHouse "
        f"has batch {cut.batch_id} on record, number {cut.cut_number}, which this ledger does not know. Nothing is cut "
        "or delivered here until you stop the other instance, if there is one, for good and run 'outbox adopt' on this "
        "one."
    )


def read_seen(client: EventLogClient) -> Seen:
    """Read what ClickHouse has on record."""
    return Seen(read_claims(client), read_newest(client))


def read_claimed(stores: Stores) -> Seen:
    """Read what ClickHouse has on record; where no claim to the table is confirmed, this ledger makes its own first."""
    return Seen(claimed(stores), read_newest(stores.client))


def read_newest(client: EventLogClient) -> list[Cut]:
    """Read the newest cuts, for `require_known`."""
    return newest_cuts(client, _NEWEST)


def ask_seen(engine: Engine, settings: Settings) -> Seen:
    """Return what is on record in a log that is as this code needs it, with small requests, for a tick.

    Raises as `require_log_version` does, TransientError when ClickHouse does not answer.
    """

    def look(client: EventLogClient) -> Seen:
        require_log_version(engine, client)
        seen = read_seen(client)
        if not holding(seen.claims):
            require_room(client)
        return seen

    return ask(settings, look)


def require_own(connection: Connection, table: str, seen: Seen) -> None:
    """Raise ConfigurationError where the table is another ledger's, WitnessError where another instance went on.

    The cuts in a table without an owner say nothing of this ledger: it must claim it first.
    """
    require_owner(table, seen.claims, read_ledger_id(connection))
    if holding(seen.claims):
        require_known(connection, seen.cuts)


def require_own_log(stores: Stores) -> None:
    """Look as `require_own` does; claims and writes nothing."""
    seen = read_seen(stores.client)
    with ledger_transaction(stores.engine) as connection:
        require_own(connection, stores.client.table, seen)


def missing_cuts(stores: Stores) -> list[ledger.DeliveredCut]:
    """Return what this ledger has sent and ClickHouse has no longer on record: it was restored from a backup.

    PostgreSQL is read first, so that what is delivered meanwhile is not among it. None are missing where ClickHouse has
    nothing on record at all.
    """
    with ledger_transaction(stores.engine) as connection:
        delivered = ledger.read_delivered_cuts(connection)
    if not delivered:
        return []
    shown: set[int] = set()
    for cuts in cuts_since(stores.client, min(cut.cut_number for cut in delivered)):
        shown |= {cut.cut_number for cut in cuts}
    missing = [cut for cut in delivered if cut.cut_number not in shown] if shown else []
    if not missing:
        return []
    with ledger_transaction(stores.engine) as connection:
        # What a prune has dropped meanwhile is among the last no longer.
        kept = {cut.cut_number for cut in ledger.read_delivered_cuts(connection)}
    return [cut for cut in missing if cut.cut_number in kept]


def put_on_record(stores: Stores, proved: Collection[UUID]) -> None:
    """Write the cuts of these batches, which ClickHouse has just shown whole, where it has them no longer on record.

    And the adoption of this instance, without which ClickHouse would not refuse the old one.
    """
    cuts = [Cut(cut.cut_number, cut.batch_id) for cut in missing_cuts(stores) if cut.batch_id in proved]
    with ledger_transaction(stores.engine) as connection:
        ledger_id, floor = read_ledger_id(connection), ledger.read_cuts(connection, []).floor
    if latest_adoption(stores.client) < floor and highest_number(stores.client):
        cuts.append(Cut(floor, ADOPTION))
    if cuts:
        add_cuts(stores.client, cuts, ledger_id)


def loss_problem(stores: Stores) -> str | None:
    """Say that ClickHouse has lost what was delivered, and how it comes back; None when it has not."""
    missing = missing_cuts(stores)
    if not missing:
        return None
    days = {cut.recorded_on for cut in missing}
    return (
        f"ClickHouse has no record of {counted(len(missing), 'batch', 'batches')} that this ledger has delivered (it "
        "was restored from a backup, or rows were deleted by hand): bring back what is missing with "
        f"'outbox reconcile --from {min(days)} --to {max(days)} --repair'."
    )


def _is_foreign(cut: Cut, known: ledger.KnownCuts) -> bool:
    if cut.cut_number < known.floor:
        return False
    if cut.batch_id == ADOPTION:
        return cut.cut_number != known.floor
    return known.batches.get(cut.cut_number) != cut.batch_id
