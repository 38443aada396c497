"""Statements that only look: at the whole outbox, at one event, and at the server itself.

Invariant: nothing here locks or changes a row, so an operator may ask as often as they like while batches are cut.
"""

from collections.abc import Collection, Sequence
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Date, Text, cast, exists, func, select
from sqlalchemy.engine import RowMapping

from outbox_pipeline.postgres.gaps import MAX_PROBED_STRETCHES
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import batch, event


def read_overview(connection: Connection, *, limit: int) -> RowMapping:
    """Return the one row of `status.sql`; it looks for at most *limit* pending events."""
    return connection.execute(query("status"), {"limit": limit, "max_stretches": MAX_PROBED_STRETCHES}).mappings().one()


def read_gap_holders(connection: Connection) -> Sequence[RowMapping]:
    """Return the transactions that keep gaps open, longest first, as `gap_holders.sql` describes them."""
    return connection.execute(query("gap_holders")).mappings().all()


def read_ledger_breaches(connection: Connection) -> Sequence[RowMapping]:
    """Return each rule of the ledger that is broken, how often, and one place; none when it is sound."""
    return connection.execute(query("ledger_breaches")).mappings().all()


def read_metrics(connection: Connection, *, limit: int, quantiles: Sequence[float]) -> RowMapping:
    """Return the one row of `metrics.sql`; pending events are counted one by one up to *limit*."""
    parameters = {"limit": limit, "max_stretches": MAX_PROBED_STRETCHES, "quantiles": list(quantiles)}
    return connection.execute(query("metrics"), parameters).mappings().one()


def read_event_life(connection: Connection, event_id: UUID) -> RowMapping | None:
    """Return what the ledger knows of an event, None when the outbox does not hold it."""
    return connection.execute(query("event_life"), {"event_id": event_id}).mappings().one_or_none()


def read_recorded_at(connection: Connection, event_id: UUID) -> datetime | None:
    """Return when PostgreSQL stored an event, None when the outbox does not hold it."""
    return connection.scalar(select(event.c.recorded_at).where(event.c.event_id == event_id))


def read_context(connection: Connection, event_id: UUID) -> str | None:
    """Return an event's content as it was published, None when the outbox does not hold the event."""
    return connection.scalar(select(cast(event.c.event_context, Text)).where(event.c.event_id == event_id))


def read_batch_times(connection: Connection, batch_ids: Collection[UUID]) -> Sequence[RowMapping]:
    """Return when each of the batches was cut, started and processed, with its latest attempt and run."""
    statement = select(
        *(batch.c.batch_id, batch.c.cut_at, batch.c.started_at, batch.c.processed_at, batch.c.attempt, batch.c.run_id),
        batch.c.split_at,
    ).where(batch.c.batch_id.in_(batch_ids))
    return connection.execute(statement).mappings().all()


def has_run(connection: Connection, *, looked_at: int = 1000) -> bool:
    """Tell whether one of the batches that were processed last was delivered by a run of Dagster."""
    latest = select(batch.c.run_id).order_by(batch.c.processed_at.desc().nulls_last()).limit(looked_at).subquery()
    return bool(connection.scalar(select(exists().where(latest.c.run_id.is_not(None)))))


def read_former_batches(connection: Connection, event_id: UUID) -> list[UUID]:
    """Return the batches that held an event and were split, in that order."""
    statement = (
        select(batch.c.batch_id)
        .join_from(event, batch, batch.c.former_positions.op("@>")(event.c.position))
        .where(event.c.event_id == event_id, batch.c.former_positions.is_not(None))
        .order_by(batch.c.split_at)
    )
    return list(connection.execute(statement).scalars())


def read_splits(connection: Connection, *, days: int) -> tuple[int, int, int]:
    """Return how many batches were split in the last days, and the most events and bytes that one of them had."""
    since = func.statement_timestamp() - timedelta(days=days)
    statement = select(
        func.count(), func.coalesce(func.max(batch.c.event_count), 0), func.coalesce(func.max(batch.c.context_bytes), 0)
    ).where(batch.c.former_positions.is_not(None), batch.c.split_at > since)
    count, event_count, context_bytes = connection.execute(statement).one()
    return count, event_count, context_bytes


def read_future_days(connection: Connection) -> tuple[int, date | None]:
    """Return how many batches are of a UTC day that has not come by this server's clock, and the last such day."""
    today = cast(func.timezone("UTC", func.statement_timestamp()), Date)
    count, last_day = connection.execute(
        select(func.count(), func.max(batch.c.recorded_on)).where(batch.c.recorded_on > today)
    ).one()
    return count, last_day


def read_server(connection: Connection) -> tuple[int, str, datetime]:
    """Return the server's version number (180004), the database's encoding and the server's clock."""
    row = connection.execute(
        select(
            func.current_setting("server_version_num"), func.current_setting("server_encoding"), func.clock_timestamp()
        )
    ).one()
    return int(row[0]), str(row[1]), row[2]


def is_pooled(connection: Connection) -> bool:
    """Tell whether a pooler stands between: another process answered the login than runs the statements."""
    driver: Any = connection.connection.driver_connection
    own_pid: int = driver.info.backend_pid
    return bool(connection.scalar(select(func.pg_backend_pid())) != own_pid)


def read_grants(connection: Connection) -> RowMapping:
    """Return the one row of `missing_grants.sql`: what the current user lacks to deliver."""
    return connection.execute(query("missing_grants")).mappings().one()


def read_switched_off(connection: Connection, names: list[str]) -> list[str]:
    """Return those of the server's on/off settings that are off."""
    return [name for name in names if connection.scalar(select(func.current_setting(name))) != "on"]


def read_vacuum_off(connection: Connection) -> list[str]:
    """Return server settings and tables of the outbox that keep autovacuum from working."""
    return list(connection.execute(query("vacuum_off")).scalars())


def read_unseen_changes(connection: Connection) -> tuple[int, list[RowMapping]]:
    """Return how many tables are captured, and what lets their changes pass unseen, as `unseen_changes.sql` has it."""
    rows = connection.execute(query("unseen_changes")).mappings().all()
    return rows[0]["table_count"], [row for row in rows if row["kind"] is not None]
