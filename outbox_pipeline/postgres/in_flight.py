"""What is not processed yet, in numbers: all that a look of the scheduler decides by.

Nothing here locks or changes a row.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection, and_, func, not_, select

from outbox_pipeline.batches import IN_FLIGHT, BatchStatus
from outbox_pipeline.postgres.leases import is_over
from outbox_pipeline.postgres.tables import batch


@dataclass(frozen=True)
class OpenBatches:
    """What is not processed at one moment.

    `other_day` are those of a day that is none of the days asked about; `is_probing` when the latest failure was a
    passing one and nothing was delivered since.
    """

    in_flight: int
    running: int
    parked: int
    other_day: int
    is_probing: bool


def count_open(connection: Connection, *, days: tuple[date, date], passing_kinds: Collection[str]) -> OpenBatches:
    """Count the batches that are not processed; *passing_kinds* are the errors that say nothing of the batch itself."""
    is_new = batch.c.processed_at.is_(None)
    is_running = and_(batch.c.status.in_([BatchStatus.REQUESTED, BatchStatus.DELIVERING]), is_new)
    # A time in the future says nothing of what came last; it would decide that for as long as the clock was ahead.
    now = func.statement_timestamp()
    last_success = select(func.max(batch.c.processed_at)).where(batch.c.processed_at <= now).scalar_subquery()
    is_passing = and_(batch.c.last_error_kind.in_(passing_kinds), is_new, batch.c.failed_at <= now)
    last_failure = func.max(batch.c.failed_at).filter(is_passing)
    statement = select(
        func.count().filter(batch.c.status.in_(IN_FLIGHT), is_new),
        func.count().filter(is_running, not_(is_over(batch.c.lease_until))),
        func.count().filter(batch.c.status == BatchStatus.PARKED),
        func.count().filter(batch.c.status.in_(IN_FLIGHT), not_(batch.c.recorded_on.between(*days))),
        func.coalesce(last_failure > func.coalesce(last_success, last_failure - timedelta(days=1)), False),
    ).where(batch.c.status != BatchStatus.PROCESSED)
    return OpenBatches(*connection.execute(statement).one())
