"""One look of the scheduler: what to cut now and which batches to ask runs for.

The ledger is the truth and the tick is not: evaluating one twice, or losing its answer, costs time and nothing else.
"""

from dataclasses import dataclass, field
from datetime import date

from sqlalchemy import Engine, func, select

from outbox_pipeline.batches import IN_FLIGHT, BatchRequest, BatchStatus
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.postgres.tables import batch
from outbox_pipeline.relay.attempts import request_batches
from outbox_pipeline.relay.cut import CutResult, cut_batches
from outbox_pipeline.settings import Settings


@dataclass(frozen=True)
class Tick:
    """What a tick found and did."""

    requests: list[BatchRequest] = field(default_factory=list)
    cut: CutResult = field(default_factory=CutResult)
    open_count: int = 0
    parked_count: int = 0
    held_back_count: int = 0

    def summary(self) -> str:
        """Say in one sentence why nothing, or what, was requested."""
        parts = [f"{self.open_count} batches in flight"]
        if self.cut.lingering_count:
            parts.append(f"{self.cut.lingering_count} events wait for company (OUTBOX_LINGER_SECONDS)")
        if self.parked_count:
            parts.append(f"{self.parked_count} parked, a person must look ('outbox status')")
        if self.held_back_count:
            parts.append(f"{self.held_back_count} of a day that is no partition (OUTBOX_START_DATE, clocks)")
        return ", ".join(parts)


def plan_tick(engine: Engine, settings: Settings, *, days: tuple[date, date]) -> Tick:
    """Cut what is pending unless too much is in flight, then draw attempts for due batches of these days.

    Parked batches and batches outside *days* do not count as in flight, so they hold nothing else up.
    """
    open_count, parked_count, held_back_count = _count_open(engine, days)
    room = settings.max_open_batches - open_count
    cut = cut_batches(engine, settings, most=min(room, settings.max_cuts_per_tick)) if room > 0 else CutResult()
    requests = request_batches(engine, settings, most=settings.max_open_batches, days=days)
    return Tick(requests, cut, open_count + len(cut.batches), parked_count, held_back_count)


def _count_open(engine: Engine, days: tuple[date, date]) -> tuple[int, int, int]:
    is_deliverable = batch.c.recorded_on.between(*days)
    statement = select(
        func.count().filter(batch.c.status.in_(IN_FLIGHT), is_deliverable),
        func.count().filter(batch.c.status == BatchStatus.PARKED),
        func.count().filter(batch.c.status.in_(IN_FLIGHT), ~is_deliverable),
    ).where(batch.c.status != BatchStatus.PROCESSED)
    with ledger_transaction(engine) as connection:
        check_version(connection)
        open_count, parked_count, held_back_count = connection.execute(statement).one()
    return open_count, parked_count, held_back_count
