"""Statements on what other instances of the ledger delivered and this one does not have, by the ids of the events.

An adoption gathers the ids in a temporary table, however many, and keeps them in its own transaction; a freeze looks
its batch up in what was kept. Nearly always nothing was, which `read_conditions` tells without a statement more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, func, select, text

from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import delivered_elsewhere, event

#: Where a kept id stands among all: when it was learned, and the id.
Place = tuple[datetime, UUID]

#: Before every kept id.
FIRST: Place = (datetime.min.replace(tzinfo=UTC), UUID(int=0))


@dataclass(frozen=True)
class DeliveredElsewhere:
    """An event that another instance delivered: its position here, and the batch and position it has in ClickHouse."""

    position: int
    event_id: UUID
    batch_id: UUID
    there: int


@dataclass(frozen=True)
class Strange:
    """Rows of unknown batches of whose events none is here; `samples` are position, event id and batch of some."""

    row_count: int
    batch_count: int
    samples: list[tuple[int, UUID, UUID]]


def create_gathering(connection: Connection) -> None:
    """Create the temporary table of this transaction in which ids are gathered."""
    statement = (
        "CREATE TEMPORARY TABLE elsewhere (event_id uuid NOT NULL, batch_id uuid NOT NULL, position bigint NOT NULL,"
        " is_foreign boolean NOT NULL) ON COMMIT DROP"
    )
    connection.execute(text(statement))


def gather_foreign(connection: Connection, batch_id: UUID, rows: Sequence[tuple[int, UUID]]) -> None:
    """Gather ids of rows that stand under a batch of this ledger and are no events of its own."""
    statement = text(
        "INSERT INTO pg_temp.elsewhere (event_id, batch_id, position, is_foreign)"
        " SELECT event_id, :batch_id, position, true"
        " FROM unnest(CAST(:positions AS bigint[]), CAST(:event_ids AS uuid[])) AS shown (position, event_id)"
    )
    parameters = {
        "batch_id": batch_id,
        "positions": [position for position, _ in rows],
        "event_ids": [event_id for _, event_id in rows],
    }
    connection.execute(statement, parameters)


def find_repeated(connection: Connection) -> None:
    """List in a temporary table the events here that have one of the gathered ids, and are not to be moved."""
    connection.execute(text("ANALYZE pg_temp.elsewhere"))
    connection.execute(
        text(
            "CREATE TEMPORARY TABLE repeated ON COMMIT DROP AS"
            " SELECT DISTINCT event.position, event.event_id"
            " FROM pg_temp.elsewhere JOIN outbox.event ON event.event_id = elsewhere.event_id"
            " WHERE NOT EXISTS (SELECT FROM pg_temp.hidden WHERE hidden.position = event.position)"
        )
    )
    connection.execute(text("CREATE INDEX ON pg_temp.repeated (position)"))
    connection.execute(text("ANALYZE pg_temp.repeated"))


def read_strange(connection: Connection, *, limit: int) -> Strange:
    """Return what was gathered of unknown batches and is not here under any position, at most *limit* named."""
    unmatched = (
        " FROM pg_temp.elsewhere WHERE NOT is_foreign"
        " AND NOT EXISTS (SELECT FROM pg_temp.repeated WHERE repeated.event_id = elsewhere.event_id)"
    )
    counts = connection.execute(text(f"SELECT count(*), count(DISTINCT batch_id){unmatched}")).one()
    named = text(f"SELECT position, event_id, batch_id{unmatched} ORDER BY position, event_id LIMIT :limit")
    samples = [(row.position, row.event_id, row.batch_id) for row in connection.execute(named, {"limit": limit})]
    return Strange(counts[0], counts[1], samples)


def settle_repeated(connection: Connection) -> list[tuple[int, UUID]]:
    """Take out of the repeated events those that stand in ClickHouse twice by now, and return them."""
    return [(row.position, row.event_id) for row in connection.execute(query("settle_repeated"))]


def restart_repeated(connection: Connection) -> int:
    """End the attempts on batches with repeated events, and return how many such events there are."""
    connection.execute(query("restart_repeated"))
    return connection.scalar(text("SELECT count(*) FROM pg_temp.repeated")) or 0


def keep(connection: Connection) -> int:
    """Keep the gathered ids and return how many are new."""
    return connection.scalar(query("keep_elsewhere")) or 0


def count_new(connection: Connection) -> int:
    """Return how many ids `keep` would add. Changes nothing."""
    statement = text(
        "SELECT count(DISTINCT event_id) FROM pg_temp.elsewhere WHERE NOT EXISTS ("
        "SELECT FROM outbox.delivered_elsewhere WHERE delivered_elsewhere.event_id = elsewhere.event_id)"
    )
    return connection.scalar(statement) or 0


def find_in_batch(connection: Connection, batch_id: UUID) -> list[DeliveredElsewhere]:
    """Return those events of a batch that another instance delivered. Changes nothing."""
    rows = connection.execute(query("elsewhere_in_batch"), {"batch_id": batch_id})
    return [DeliveredElsewhere(**row._mapping) for row in rows]


def read_elsewhere(connection: Connection, event_id: UUID) -> tuple[UUID, datetime] | None:
    """Return the batch that has an event of another instance, and when that was learned; None when none is known."""
    column = delivered_elsewhere.c
    row = connection.execute(
        select(column.batch_id, column.adopted_at).where(column.event_id == event_id)
    ).one_or_none()
    return None if row is None else (row.batch_id, row.adopted_at)


def prune_elsewhere(
    connection: Connection, *, now: datetime, days: int, after: Place, limit: int
) -> tuple[int, Place | None]:
    """Look at up to *limit* ids behind *after*, learned *days* ago, and forget those of which no event is here.

    Returns how many were forgotten and the last that was looked at, None when there was none.
    """
    parameters = {"now": now, "days": days, "limit": limit, "after_time": after[0], "after_id": after[1]}
    row = connection.execute(query("delete_elsewhere"), parameters).one_or_none()
    return (0, None) if row is None else (row.forgotten, (row.adopted_at, row.event_id))


def count_old(connection: Connection, *, now: datetime, days: int) -> int:
    """Return how many ids `prune_elsewhere` would take. Changes nothing."""
    column = delivered_elsewhere.c
    is_here = select(event.c.position).where(event.c.event_id == column.event_id).exists()
    old = column.adopted_at < func.least(func.clock_timestamp(), now) - timedelta(days=days)
    return connection.scalar(select(func.count()).select_from(delivered_elsewhere).where(old, ~is_here)) or 0
