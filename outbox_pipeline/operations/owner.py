"""Take the event log from another outbox, for a ledger that was made anew on purpose.

Invariant: the other's claim ends and this one's begins in one insert, so the table is never without an owner, and no
row of the event log is touched. Inserts of the other that had begun by then have ended when `take_table` comes back.
What the other one told of days goes, because nothing of it is true of this ledger, and its batches, which the witness
would take for those of another instance, are settled as by `adopt`.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from outbox_pipeline.clickhouse.completeness import drop_days, read_delivered
from outbox_pipeline.clickhouse.owner import Claim, holding, read_claims
from outbox_pipeline.clickhouse.schema import read_log
from outbox_pipeline.errors import InDoubtError
from outbox_pipeline.logs import log
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.operations.running_inserts import wait_for_inserts
from outbox_pipeline.postgres.conditions import read_conditions, read_ledger_id
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.relay.owner import claim_table, count_unknown_rows, make_claim, owner_problem
from outbox_pipeline.stores import Stores

#: Before the first time that an event can have.
_EVER = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Taking:
    """What taking the table means: whose it was, and how many rows in it are of no batch of this ledger."""

    previous: tuple[Claim, ...]
    unknown_rows: int


def find_taking(stores: Stores) -> Taking | None:
    """Look what `take_table` would do; None when the table may be claimed as it is. Changes nothing.

    Asks no more of the log than that the claims are there, so that nothing has to be made before somebody agrees.
    """
    tables = read_log(stores.client).tables
    claims = read_claims(stores.client) if "sources" in tables else []
    with ledger_transaction(stores.engine) as connection:
        ledger_id = read_ledger_id(connection)
    is_other_s = owner_problem(stores.client.table, claims, ledger_id) is not None
    if not is_other_s and holding(claims):
        return None
    unknown = count_unknown_rows(stores.engine, stores.client) if "table" in tables else 0
    if not is_other_s and not unknown:
        return None
    return Taking(tuple(claim for claim in holding(claims) if claim.ledger_id != ledger_id), unknown)


def take_table(stores: Stores) -> None:
    """Make this ledger the table's owner, also when another has it, which is refused from its next look on.

    Comes back when inserts of others that had begun by then have ended, and when what the other one left on record and
    delivered of this ledger's events is settled as `adopt` does. Where this ledger owns the table already, nothing is
    adopted. Raises ConfigurationError when a further one takes it at the same moment, InDoubtError when such an insert
    still runs after a minute: the table is this ledger's already, and a repetition waits again.
    """
    claims = read_claims(stores.client)
    with ledger_transaction(stores.engine) as connection:
        ledger_id = read_ledger_id(connection)
    if find_taking(stores) is None:
        claim_table(stores)
        _wait_for_others(stores, ledger_id)
        return
    # Before the claim: killed in between, a repetition would find the table its own and leave them.
    _drop_told(stores)
    make_claim(stores, ledger_id, retiring=holding(claims))
    _drop_told(stores)
    _wait_for_others(stores, ledger_id)
    log().warning("table_taken", table=stores.client.table, ledger_id=str(ledger_id))
    _settle_others(stores)


def _settle_others(stores: Stores) -> None:
    # A ledger that seems to be made anew may be one restored from a backup without a ledger id, so what it delivered is
    # looked for. One that belongs to another cluster waits for a person, who is shown first what there is to adopt.
    with ledger_transaction(stores.engine) as connection:
        is_own = read_conditions(connection).is_own_cluster
    if is_own:
        adopt(stores)


def _wait_for_others(stores: Stores, ledger_id: UUID) -> None:
    seconds = wait_for_inserts(stores.client, not_of=ledger_id)
    if seconds is not None:
        raise InDoubtError(
            f"Table {stores.client.table} is this outbox's now, but an insert that the other one began before still "
            f"runs in ClickHouse (for {seconds:.0f} s): repeat 'outbox init --take-table', which waits for its end, "
            "before this outbox delivers."
        )


def _drop_told(stores: Stores) -> None:
    days = [day.day for day in read_delivered(stores.client)]
    if days:
        drop_days(stores.client, days, written_after=_EVER)
