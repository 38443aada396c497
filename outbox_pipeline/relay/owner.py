"""Whose table it is: a source on a table belongs to one ledger, and only that one writes there.

A claim is written, then all are read again. Of two ledgers at once at least one sees the other's row: it takes its own
back and is refused, and so may both be; a repetition then succeeds for one. Invariant: a ledger relies on its claim
only after a later reading showed no other's, and one whose table was taken claims nothing by itself.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import URL

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.errors import WAYS_ON
from outbox_pipeline.clickhouse.owner import (
    Claim,
    add_claims,
    drop_claim,
    holding,
    new_claim,
    read_claims,
)
from outbox_pipeline.clickhouse.sources import crowded_problem
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.conditions import read_ledger_id
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.relay.points import Point, announce
from outbox_pipeline.settings import shown_url
from outbox_pipeline.stores import Stores


def claimed(stores: Stores) -> list[Claim]:
    """Return the claims to the table; where none holds, this ledger makes its own first.

    The caller compares them with its ledger's id, read from PostgreSQL after that. Raises ConfigurationError when
    another ledger claims it at the same moment, or has taken it from this one.
    """
    claims = read_claims(stores.client)
    if holding(claims):
        return claims
    claim_table(stores)
    return read_claims(stores.client)


def claim_table(stores: Stores) -> None:
    """Make this ledger the table's owner, or find that it is; raises ConfigurationError when another is."""
    with ledger_transaction(stores.engine) as connection:
        check_version(connection)
        ledger_id = read_ledger_id(connection)
    claims = read_claims(stores.client)
    require_owner(stores.client.table, claims, ledger_id)
    if not holding(claims):
        make_claim(stores, ledger_id)


def make_claim(stores: Stores, ledger_id: UUID, *, retiring: Sequence[Claim] = ()) -> None:
    """Write this ledger's claim, with the end of others, and rely on it only if no further one is there then.

    A further one is that of another ledger, or in a table of before that of another source.
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


def require_room(client: EventLogClient) -> None:
    """Raise ConfigurationError where the table serves another source and can serve no second one."""
    problem = crowded_problem(client)
    if problem is not None:
        raise ConfigurationError(problem)


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
