"""Whose table it is: a source on a table belongs to one ledger, and only that one writes there.

A process writes a claim of its own, then reads all: another ledger's there, it takes its own back and is refused;
none, it writes its claim a second time, and any process of the ledger relies on a claim that stands there twice. Of two
ledgers at once at least one sees the other's row, and so may both; a repetition then succeeds for one. Invariant: a
process relies on no claim that may still be taken back. One that finds a claim of its own ledger that stands there once
(a sibling has not looked again, or never will) goes through the same steps with a claim of its own.

A table that holds rows of batches which the ledger does not know is not claimed by itself, nor by a ledger from which
it was taken.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import URL, Engine

from outbox_pipeline.clickhouse.batch_contents import counts_of_batches
from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.errors import WAYS_ON
from outbox_pipeline.clickhouse.owner import (
    Claim,
    add_claims,
    confirm_claim,
    drop_claim,
    holding,
    new_claim,
    read_claims,
)
from outbox_pipeline.clickhouse.sources import crowded_problem
from outbox_pipeline.counts import counted
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.conditions import read_ledger_id
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.reconcile import known_bounds
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.relay.points import Point, announce
from outbox_pipeline.settings import shown_url
from outbox_pipeline.stores import Stores


def claimed(stores: Stores) -> list[Claim]:
    """Return the claims to the table; where none is confirmed, this ledger makes its own first.

    The caller compares them with its ledger's id, read from PostgreSQL after that. Raises as `claim_table` does.
    """
    claims = read_claims(stores.client)
    if any(claim.is_confirmed for claim in holding(claims)):
        return claims
    claim_table(stores)
    return read_claims(stores.client)


def claim_table(stores: Stores) -> None:
    """Make this ledger the table's owner, or find that it is.

    Raises ConfigurationError when another is or claims it at the same moment, when the table was taken from this one,
    and when it is a table without an owner that holds rows of batches which this ledger does not know.
    """
    with ledger_transaction(stores.engine) as connection:
        check_version(connection)
        ledger_id = read_ledger_id(connection)
    claims = read_claims(stores.client)
    require_owner(stores.client.table, claims, ledger_id)
    if any(claim.is_confirmed for claim in holding(claims)):
        return
    if not holding(claims):
        require_known_rows(stores.engine, stores.client)
    make_claim(stores, ledger_id)


def make_claim(stores: Stores, ledger_id: UUID, *, retiring: Sequence[Claim] = ()) -> None:
    """Write a claim of this ledger, with the end of others, and confirm it only if no further one is there then.

    A further one is that of another ledger, or in an older table (without source in its key) that of another source.
    """
    require_room(stores.client)
    own = new_claim(stores.client, ledger_id, label_of(stores))
    announce(Point.CLAIMING)
    add_claims(stores.client, [own], retiring=retiring)
    announce(Point.CLAIMED)
    others = [claim for claim in holding(read_claims(stores.client)) if claim.ledger_id != ledger_id]
    if others:
        drop_claim(stores.client, own)
        raise ConfigurationError(
            f"Another outbox ({others[0].label}) claims table {stores.client.table} at the same moment, so this one "
            f"has taken its claim back: {WAYS_ON}"
        )
    crowded = crowded_problem(stores.client)
    if crowded is not None:
        drop_claim(stores.client, own)
        raise ConfigurationError(crowded)
    announce(Point.LOOKED_AGAIN)
    confirm_claim(stores.client, own)


def require_room(client: EventLogClient) -> None:
    """Raise ConfigurationError where the table serves another source and can serve no second one."""
    problem = crowded_problem(client)
    if problem is not None:
        raise ConfigurationError(problem)


def require_known_rows(engine: Engine, client: EventLogClient) -> None:
    """Raise ConfigurationError where a table without an owner holds rows of batches that this ledger never cut."""
    count = count_unknown_rows(engine, client)
    if count:
        raise ConfigurationError(
            f"Table {client.table} belongs to no outbox, but holds {counted(count, 'row')} of batches that this "
            "ledger does not know: give this outbox a table of its own with OUTBOX_CLICKHOUSE_TABLE (or another "
            "database) and run 'outbox init', or, for a ledger that was restored or made anew on purpose, run "
            "'outbox init --take-table'."
        )


def count_unknown_rows(engine: Engine, client: EventLogClient) -> int:
    """Count the rows in the table that are of no batch of this ledger; a scan of the whole table."""
    count = 0
    for counts in counts_of_batches(client):
        with ledger_transaction(engine) as connection:
            known = known_bounds(connection, list(counts))
        count += sum(row_count for batch_id, row_count in counts.items() if batch_id not in known)
    return count


def require_owner(table: str, claims: Sequence[Claim], ledger_id: UUID) -> None:
    """Raise ConfigurationError where the table is another ledger's, or was taken from this one."""
    problem = owner_problem(table, claims, ledger_id)
    if problem is not None:
        raise ConfigurationError(problem)


def owner_problem(table: str, claims: Sequence[Claim], ledger_id: UUID) -> str | None:
    """Return the sentence for a table that this ledger must not write into, None when it may."""
    others = [claim for claim in holding(claims) if claim.ledger_id != ledger_id]
    if others and len(others) < len(holding(claims)):
        return (
            f"Table {table} is claimed by this outbox and by another one ({others[0].label}), one of which ended "
            "before it had looked again: stop the one that is not to have the table, then run "
            "'outbox init --take-table' for the other."
        )
    if others:
        return (
            f"Table {table} belongs to another outbox ({others[0].label}, since "
            f"{others[0].registered_at:%Y-%m-%d %H:%M} UTC), and two would spoil each other's answers: {WAYS_ON}"
        )
    if holding(claims):
        return None
    own = [claim for claim in claims if claim.ledger_id == ledger_id]
    if own:
        return f"Table {table} was taken from this outbox by another one, which has it no longer either: {WAYS_ON}"
    return None


def label_of(stores: Stores) -> str:
    """Return what a person knows this outbox by: its database, without user and password."""
    url = stores.engine.url
    return shown_url(URL.create("postgresql", host=url.host, port=url.port, database=url.database).render_as_string())
