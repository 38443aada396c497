"""Take the event log from another outbox, for a ledger that was made anew on purpose.

Invariant: the other's claim ends and this one's begins in one insert, so the table is never without an owner, and no
row of the event log is touched. What the other one told of days goes, because nothing of it is true of this ledger.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from outbox_pipeline.clickhouse.batch_contents import shown_batches
from outbox_pipeline.clickhouse.completeness import drop_days, read_delivered
from outbox_pipeline.clickhouse.owner import Claim, holding, read_claims
from outbox_pipeline.clickhouse.schema import read_log
from outbox_pipeline.logs import log
from outbox_pipeline.postgres.conditions import read_ledger_id
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.reconcile import known_bounds
from outbox_pipeline.relay.owner import claim_table, make_claim, owner_problem
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
    if "sources" not in tables:
        return None
    claims = read_claims(stores.client)
    with ledger_transaction(stores.engine) as connection:
        ledger_id = read_ledger_id(connection)
    if owner_problem(stores.client.table, claims, ledger_id) is None:
        return None
    others = tuple(claim for claim in holding(claims) if claim.ledger_id != ledger_id)
    return Taking(others, _count_unknown(stores) if "table" in tables else 0)


def take_table(stores: Stores) -> None:
    """Make this ledger the table's owner, whoever has it; the other one is refused from its next look on.

    Raises ConfigurationError when a further one takes it at the same moment.
    """
    claims = read_claims(stores.client)
    with ledger_transaction(stores.engine) as connection:
        ledger_id = read_ledger_id(connection)
    if owner_problem(stores.client.table, claims, ledger_id) is None:
        claim_table(stores)
        return
    # Before the claim: killed in between, a repetition would find the table its own and leave them.
    _drop_told(stores)
    make_claim(stores, ledger_id, retiring=holding(claims))
    _drop_told(stores)
    log().warning("table_taken", table=stores.client.table, ledger_id=str(ledger_id))


def _drop_told(stores: Stores) -> None:
    days = [day.day for day in read_delivered(stores.client)]
    if days:
        drop_days(stores.client, days, written_after=_EVER)


def _count_unknown(stores: Stores) -> int:
    count = 0
    for block in shown_batches(stores.client):
        with ledger_transaction(stores.engine) as connection:
            known = known_bounds(connection, [shown.batch_id for shown in block])
        count += sum(shown.row_count for shown in block if shown.batch_id not in known)
    return count
