"""Statements on quarantined events: which are held and why, put back to be delivered, or given up.

Invariant: a row leaves `held` once. Requeueing gives its position to `unclaimed` in the same statement, so the position
is never in two places and never in none.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Connection, Uuid, any_, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import RowMapping
from sqlalchemy.types import TypeEngine

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import batch, event, quarantined_event
from outbox_pipeline.quarantined import Filter, QuarantinedEvent, QuarantineStatus


@dataclass(frozen=True)
class LockedEvent:
    """A held event that is locked now; `is_there` is False when its row was deleted from the outbox by hand."""

    quarantine_id: int
    batch_id: UUID
    is_there: bool


_SHOWN = [getattr(quarantined_event.c, name) for name in QuarantinedEvent.__dataclass_fields__]


def read_quarantined(
    connection: Connection, wanted: Filter, *, status: QuarantineStatus, limit: int | None = None
) -> list[QuarantinedEvent]:
    """Return the matching events in this status, latest first, at most *limit* of them. Changes nothing."""
    statement = select(*_SHOWN).where(*_conditions(wanted, status)).order_by(quarantined_event.c.quarantine_id.desc())
    return [_as_quarantined(row) for row in connection.execute(statement.limit(limit)).mappings()]


def read_history(connection: Connection, wanted: Filter) -> list[QuarantinedEvent]:
    """Return all stays in quarantine of the events that are named, whatever became of them, first to last."""
    statement = select(*_SHOWN).where(*_conditions(wanted)).order_by(quarantined_event.c.quarantine_id)
    return [_as_quarantined(row) for row in connection.execute(statement).mappings()]


def read_event(connection: Connection, event_id: UUID) -> RowMapping | None:
    """Return the event itself with its context as text, None when the outbox does not hold it."""
    return connection.execute(query("quarantined_content"), {"event_id": event_id}).mappings().one_or_none()


def count_held(connection: Connection, wanted: Filter) -> tuple[int, datetime | None]:
    """Return how many matching events are held, and since when the oldest of them. Changes nothing."""
    statement = select(func.count(), func.min(quarantined_event.c.quarantined_at))
    row = connection.execute(statement.where(*_conditions(wanted, QuarantineStatus.HELD))).one()
    return row[0], row[1]


def count_reasons(connection: Connection, wanted: Filter) -> dict[str, int]:
    """Return how many matching held events have each reason code, most frequent first; an event may have several."""
    reasons = (
        select(_code(func.unnest(quarantined_event.c.reasons)).label("reason"))
        .where(*_conditions(wanted, QuarantineStatus.HELD))
        .subquery()
    )
    rows = connection.execute(select(reasons.c.reason, func.count()).group_by(reasons.c.reason))
    return dict(sorted(((row[0], row[1]) for row in rows), key=lambda pair: (-pair[1], pair[0])))


def lock_batches(connection: Connection, wanted: Filter) -> dict[UUID, BatchStatus]:
    """Keep the batches of matching held events as they are until the transaction ends; return their statuses."""
    held = select(quarantined_event.c.batch_id).where(*_conditions(wanted, QuarantineStatus.HELD))
    statement = select(batch.c.batch_id, batch.c.status).where(batch.c.batch_id.in_(held)).order_by(batch.c.batch_id)
    rows = connection.execute(statement.with_for_update(read=True))
    return {row.batch_id: BatchStatus(row.status) for row in rows}


def lock_held(
    connection: Connection, wanted: Filter, *, batch_ids: Collection[UUID] | None = None
) -> list[LockedEvent]:
    """Lock the matching events that are held, only those of *batch_ids* when given, in the order all use."""
    is_there = select(event.c.position).where(event.c.position == quarantined_event.c.position).exists()
    statement = select(quarantined_event.c.quarantine_id, quarantined_event.c.batch_id, is_there.label("is_there"))
    statement = statement.where(*_conditions(wanted, QuarantineStatus.HELD))
    if batch_ids is not None:
        statement = statement.where(_is_among(quarantined_event.c.batch_id, batch_ids, Uuid()))
    rows = connection.execute(statement.order_by(quarantined_event.c.quarantine_id).with_for_update())
    return [LockedEvent(**row._mapping) for row in rows]


def requeue_events(connection: Connection, quarantine_ids: Collection[int]) -> int:
    """Move held events to requeued and their positions into `unclaimed`; return how many.

    The caller has locked `unclaimed` in a statement of its own, the batches after it, and then these rows.
    """
    return connection.scalar(query("requeue_events"), {"quarantine_ids": list(quarantine_ids)}) or 0


def discard_events(connection: Connection, quarantine_ids: Collection[int], *, note: str) -> int:
    """Move held events to discarded for good and keep *note* with them; return how many."""
    statement = (
        update(quarantined_event)
        .where(_is_among(quarantined_event.c.quarantine_id, quarantine_ids, BigInteger()))
        .where(quarantined_event.c.status == QuarantineStatus.HELD)
        .values(status=QuarantineStatus.DISCARDED, resolved_at=func.clock_timestamp(), note=note)
    )
    return connection.execute(statement).rowcount


def replace_event(connection: Connection, quarantine_id: int, *, replaced_by: UUID) -> int:
    """Move a held event to replaced for good, by the event that was just published; return 1, or 0 when not held."""
    statement = (
        update(quarantined_event)
        .where(quarantined_event.c.quarantine_id == quarantine_id)
        .where(quarantined_event.c.status == QuarantineStatus.HELD)
        .values(status=QuarantineStatus.REPLACED, resolved_at=func.clock_timestamp(), replaced_by=replaced_by)
    )
    return connection.execute(statement).rowcount


def read_replaced(connection: Connection, event_id: UUID) -> UUID | None:
    """Return the event in whose place this one was published, None when it is no correction."""
    statement = select(quarantined_event.c.event_id).where(quarantined_event.c.replaced_by == event_id)
    return connection.scalar(statement)


def _conditions(wanted: Filter, status: QuarantineStatus | None = None) -> list[ColumnElement[bool]]:
    column = quarantined_event.c
    conditions: list[ColumnElement[bool] | None] = [
        None if status is None else column.status == status,
        _named(wanted) if wanted.has_ids else None,
        None if wanted.event_type is None else column.event_type == wanted.event_type,
        None if wanted.reason is None else _has_reason(wanted.reason),
        None if wanted.since is None else column.quarantined_at >= wanted.since,
        None if wanted.until is None else column.quarantined_at < wanted.until,
        None if wanted.batch_id is None else column.batch_id == wanted.batch_id,
    ]
    return [condition for condition in conditions if condition is not None]


def _has_reason(code: str) -> ColumnElement[bool]:
    reason = func.unnest(quarantined_event.c.reasons).column_valued("reason")
    return select(literal(1)).where(_code(reason) == code).exists()


def _code(reason: ColumnElement[str]) -> ColumnElement[str]:
    # Some reasons carry words after their code: "refused_by_clickhouse: …".
    return func.split_part(reason, ":", 1)


def _named(wanted: Filter) -> ColumnElement[bool]:
    by_event = _is_among(quarantined_event.c.event_id, wanted.event_ids, Uuid())
    return or_(by_event, _is_among(quarantined_event.c.quarantine_id, wanted.quarantine_ids, BigInteger()))


def _is_among(column: ColumnElement[Any], values: Collection[Any], kind: TypeEngine[Any]) -> ColumnElement[bool]:
    # One array parameter: an IN list stops at 65,535 values.
    return column == any_(literal(list(values), ARRAY(kind)))


def _as_quarantined(row: RowMapping) -> QuarantinedEvent:
    return QuarantinedEvent(**dict(row) | {"status": QuarantineStatus(row["status"])})
