"""One look of the scheduler: what to cut now and which batches to ask runs for.

The ledger is the truth and the tick is not: evaluating one twice, or losing its answer, costs time and nothing else.
"""

from dataclasses import dataclass, field
from datetime import date, timedelta

from sqlalchemy import Engine, and_, func, select

from outbox_pipeline.batches import IN_FLIGHT, BatchRequest, BatchStatus
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.postgres.tables import batch
from outbox_pipeline.relay.attempts import PASSING_KINDS, request_batches
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
    is_probing: bool = False

    def summary(self) -> str:
        """Say in one sentence why nothing, or what, was requested."""
        parts = [f"{self.open_count} batches in flight"]
        if self.cut.lingering_count:
            parts.append(f"{self.cut.lingering_count} events wait for company (OUTBOX_LINGER_SECONDS)")
        if self.is_probing:
            parts.append("one at a time until a delivery succeeds, because the latest failed for a passing reason")
        if self.parked_count:
            parts.append(f"{self.parked_count} parked, a person must look ('outbox status')")
        if self.held_back_count:
            parts.append(f"{self.held_back_count} of a day that is no partition (OUTBOX_START_DATE, clocks)")
        return ", ".join(parts)


@dataclass(frozen=True)
class _Open:
    """What is not processed, before the tick does anything."""

    in_flight: int
    running: int
    parked: int
    held_back: int
    is_probing: bool


def plan_tick(engine: Engine, settings: Settings, *, days: tuple[date, date]) -> Tick:
    """Cut what is pending unless too much is in flight, then draw attempts for due batches of these days.

    Parked batches, batches outside *days* and batches that a replay delivers again do not count as in flight, so they
    hold nothing else up. After a transient failure one batch at a time is requested until one is delivered: a server
    that has just come back is not stormed.
    """
    found = _read_open(engine, days)
    room = settings.max_open_batches - found.in_flight
    most = min(room, settings.max_cuts_per_tick)
    cut = cut_batches(engine, settings, most=most, is_brief=True) if room > 0 else CutResult()
    most = max(0, 1 - found.running) if found.is_probing else settings.max_open_batches
    requests = request_batches(engine, settings, most=most, days=days) if most else []
    return Tick(
        requests, cut, found.in_flight + len(cut.batches), found.parked, found.held_back, is_probing=found.is_probing
    )


def _read_open(engine: Engine, days: tuple[date, date]) -> _Open:
    is_deliverable = batch.c.recorded_on.between(*days)
    is_new = batch.c.processed_at.is_(None)
    is_running = and_(batch.c.status.in_([BatchStatus.REQUESTED, BatchStatus.DELIVERING]), is_new)
    last_success = select(func.max(batch.c.processed_at)).scalar_subquery()
    last_failure = func.max(batch.c.failed_at).filter(batch.c.last_error_kind.in_(PASSING_KINDS), is_new)
    statement = select(
        func.count().filter(batch.c.status.in_(IN_FLIGHT), is_deliverable, is_new),
        func.count().filter(is_running, batch.c.lease_until >= func.clock_timestamp()),
        func.count().filter(batch.c.status == BatchStatus.PARKED),
        func.count().filter(batch.c.status.in_(IN_FLIGHT), ~is_deliverable),
        func.coalesce(last_failure > func.coalesce(last_success, last_failure - timedelta(days=1)), False),
    ).where(batch.c.status != BatchStatus.PROCESSED)
    with ledger_transaction(engine) as connection:
        check_version(connection)
        return _Open(*connection.execute(statement).one())
