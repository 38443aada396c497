"""Statements of a reconciliation: what the ledger says of a window of days, and the way back for untracked events.

All but `put_back` only look. Sets of positions travel as PostgreSQL's own text.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import Connection, cast, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE

from outbox_pipeline.batches import Batch, BatchStatus, HeldType
from outbox_pipeline.days import UntrackedEvents
from outbox_pipeline.postgres.leases import read_batches
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import batch, unclaimed


@dataclass(frozen=True)
class DayCounts:
    """What the ledger says of one UTC day; `batches` and `expected_rows` are of processed batches."""

    day: date
    batches: int
    expected_rows: int
    pruned_batches: int
    open_batches: int
    parked_batches: int
    held_events: int


@dataclass(frozen=True)
class AcceptedDay:
    """Events of one UTC day that were delivered, in batches whose events were pruned or in such that have them."""

    day: date
    is_pruned: bool
    event_count: int


def has_delivered(connection: Connection) -> bool:
    """Return whether any batch with accepted events was ever marked."""
    return bool(connection.scalar(select(exists().where(batch.c.accepted_count > 0))))


def accepted_days(connection: Connection) -> list[AcceptedDay]:
    """Return the days of batches with accepted events that were marked, pruned or not, oldest first."""
    is_pruned = batch.c.pruned_at.is_not(None)
    statement = (
        select(batch.c.recorded_on, is_pruned, func.sum(batch.c.accepted_count))
        .where(batch.c.accepted_count > 0)
        .group_by(batch.c.recorded_on, is_pruned)
        .order_by(batch.c.recorded_on, is_pruned)
    )
    return [AcceptedDay(day, pruned, int(count)) for day, pruned, count in connection.execute(statement)]


def read_day_counts(connection: Connection, first_day: date, last_day: date) -> list[DayCounts]:
    """Return the days of a window that have batches, oldest first."""
    rows = connection.execute(query("ledger_days"), {"first_day": first_day, "last_day": last_day})
    return [DayCounts(**row._mapping) for row in rows]


def batches_of_days(
    connection: Connection, first_day: date, last_day: date, *, batch_id: UUID | None = None
) -> list[Batch]:
    """Return the batches of the UTC days from one to another, oldest first; only the one named, if one is.

    One that was split is among them only when it is named: its events are in others.
    """
    condition = batch.c.recorded_on.between(first_day, last_day)
    chosen = batch.c.former_positions.is_(None) if batch_id is None else batch.c.batch_id == batch_id
    return read_batches(connection, condition & chosen)


def processed_batches(connection: Connection, first_day: date, last_day: date) -> list[tuple[UUID, int]]:
    """Return id and row count of a window's processed batches, in an order in which neighbours stand side by side.

    Split ones are among them, with no row.
    """
    statement = (
        select(batch.c.batch_id, batch.c.accepted_count)
        .where(batch.c.recorded_on.between(first_day, last_day), batch.c.status == BatchStatus.PROCESSED)
        .order_by(batch.c.recorded_on, batch.c.first_position)
    )
    return [(batch_id, count) for batch_id, count in connection.execute(statement)]


def read_processed(connection: Connection, batch_ids: Collection[UUID]) -> list[Batch]:
    """Return those of the batches that are processed at this moment, or split, of which no row may be there."""
    return read_batches(connection, batch.c.batch_id.in_(batch_ids) & (batch.c.status == BatchStatus.PROCESSED))


def which_processed(connection: Connection, batch_ids: Collection[UUID]) -> set[UUID]:
    """Return those of the batches that this ledger has delivered, and that were not split."""
    statement = text(
        "SELECT batch_id FROM outbox.batch WHERE status = 'processed' AND former_positions IS NULL"
        " AND batch_id = ANY (CAST(:batch_ids AS uuid[]))"
    )
    return set(connection.execute(statement, {"batch_ids": list(batch_ids)}).scalars())


def which_here(connection: Connection, event_ids: Collection[UUID]) -> set[UUID]:
    """Return those of the event ids under which an event is in the outbox, whatever became of it."""
    statement = text("SELECT event_id FROM outbox.event WHERE event_id = ANY (CAST(:event_ids AS uuid[]))")
    return set(connection.execute(statement, {"event_ids": list(event_ids)}).scalars())


def read_stretches(connection: Connection, batch_id: UUID) -> list[tuple[int, int]]:
    """Return the half-open stretches of a batch's positions, in order."""
    statement = text(
        "SELECT lower(stretch), upper(stretch) FROM outbox.batch CROSS JOIN LATERAL unnest(positions) AS stretch"
        " WHERE batch_id = :batch_id ORDER BY 1"
    )
    return [(first, end) for first, end in connection.execute(statement, {"batch_id": batch_id})]


def known_bounds(connection: Connection, batch_ids: Collection[UUID]) -> dict[UUID, tuple[int, int, bool]]:
    """Return for each batch that the ledger knows its first and last position and whether it was adopted."""
    # As one array: more ids may be asked for than a statement can have parameters.
    statement = text(
        "SELECT batch_id, first_position, last_position, foreign_positions <> '{}' FROM outbox.batch"
        " WHERE batch_id = ANY (CAST(:batch_ids AS uuid[]))"
    )
    return {row[0]: (row[1], row[2], row[3]) for row in connection.execute(statement, {"batch_ids": list(batch_ids)})}


def held_types(connection: Connection, batch_ids: Collection[UUID]) -> list[HeldType]:
    """Count what outbox.event holds of these batches by type: a scan of their events."""
    rows = connection.execute(query("held_types"), {"batch_ids": list(batch_ids)})
    return [HeldType(row[0], row[1], row[2], int(row[3]) % 2**64, row[4]) for row in rows]


def batches_with_type(connection: Connection, batch_ids: Collection[UUID], event_type: str) -> list[UUID]:
    """Return those of the batches that hold an event of this type in outbox.event: a scan of their events at worst."""
    parameters = {"batch_ids": list(batch_ids), "event_type": event_type}
    return list(connection.execute(query("batches_with_type"), parameters).scalars())


def untracked_bounds(connection: Connection, first_day: date, last_day: date) -> tuple[int, int]:
    """Return the first and the last position at which events of these days can stand; none when first > last."""
    first, last = connection.execute(query("untracked_bounds"), {"first_day": first_day, "last_day": last_day}).one()
    return first, last


def find_untracked(connection: Connection, first_position: int, last_position: int) -> list[UntrackedEvents]:
    """Return the untracked events between two positions, by day."""
    rows = connection.execute(query("untracked"), {"first_position": first_position, "last_position": last_position})
    return [UntrackedEvents(**row._mapping) for row in rows]


def put_back(connection: Connection, untracked: Sequence[UntrackedEvents]) -> None:
    """Make untracked events unclaimed again; call it under the lock on `unclaimed`, with those found under it."""
    for item in untracked:
        connection.execute(
            update(unclaimed).values(positions=unclaimed.c.positions + cast(item.positions, INT8MULTIRANGE))
        )
