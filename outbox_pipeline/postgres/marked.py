"""Statements about the order in which batches are marked: what was marked since, and who may still mark.

`processed_at` is the clock at the mark and not at its commit, so a batch may become visible after one that was marked
later. Nothing here changes a row.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Numeric, Select, Text, cast, func, select

from outbox_pipeline.batches import LAST_POSITION, BatchStatus, MarkedBatch
from outbox_pipeline.postgres.tables import batch


@dataclass(frozen=True)
class Look:
    """PostgreSQL's clock at a moment, and its transactions: those below `xmin` are over, `xmax` and above not begun."""

    at: datetime
    xmin: int
    xmax: int


def read_look(connection: Connection) -> Look:
    """Return this moment; any role may ask."""
    snapshot = func.pg_current_snapshot()
    ends = [cast(cast(end(snapshot), Text), Numeric) for end in (func.pg_snapshot_xmin, func.pg_snapshot_xmax)]
    at, xmin, xmax = connection.execute(select(func.statement_timestamp(), *ends)).one()
    return Look(at, int(xmin), int(xmax))


def marked_after(connection: Connection, after: datetime, *, limit: int) -> list[MarkedBatch]:
    """Return the first *limit* batches that were marked after a moment, in the order of their marks."""
    return _read(connection, _marked(batch.c.processed_at > after).order_by(*_ORDER).limit(limit))


def marked_between(connection: Connection, after: datetime, until: datetime, *, limit: int) -> list[MarkedBatch]:
    """Return the last *limit* batches that were marked after one moment and until another, in the order of marks."""
    backwards = [column.desc() for column in _ORDER]
    is_between = (batch.c.processed_at > after) & (batch.c.processed_at <= until)
    return _read(connection, _marked(is_between).order_by(*backwards).limit(limit))[::-1]


_ORDER = (batch.c.processed_at, batch.c.batch_id)
_COLUMNS = tuple(batch.c[name] for name in MarkedBatch.__dataclass_fields__)


def _marked(condition: ColumnElement[bool]) -> Select[tuple[object, ...]]:
    return select(*_COLUMNS).where(condition, batch.c.status == BatchStatus.PROCESSED)


def _read(connection: Connection, statement: Select[tuple[object, ...]]) -> list[MarkedBatch]:
    found = []
    for row in connection.execute(statement).mappings():
        foreign = tuple((one.lower, one.upper or LAST_POSITION) for one in row["foreign_positions"])
        found.append(MarkedBatch(**{**row, "foreign_positions": foreign}))
    return found
