"""One look of the scheduler: what to cut now and which batches to ask runs for.

The ledger is the truth and the tick is not: evaluating one twice, or losing its answer, costs time and nothing else.
"""

from dataclasses import dataclass, field
from datetime import date

from sqlalchemy import Engine

from outbox_pipeline.batches import PASSING_KINDS, BatchRequest
from outbox_pipeline.counts import counted
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.in_flight import OpenBatches, count_open
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.relay.attempts import request_batches
from outbox_pipeline.relay.cut import CutResult, cut_batches
from outbox_pipeline.relay.witness import Seen, require_own
from outbox_pipeline.settings import Settings

#: With nothing in flight a tick that has cut for so long leaves the rest to the next.
_FIRST_SECONDS = 2.0


@dataclass(frozen=True)
class Tick:
    """What a tick found and did.

    `other_day_count`: open batches whose day is none of the tick's days; they are requested like any other.
    `held_back_count`: open batches that wait because there is no day at all under which they could be requested.
    """

    requests: list[BatchRequest] = field(default_factory=list)
    cut: CutResult = field(default_factory=CutResult)
    open_count: int = 0
    parked_count: int = 0
    other_day_count: int = 0
    held_back_count: int = 0
    is_held_back: bool = False
    is_probing: bool = False

    def summary(self) -> str:
        """Say in one sentence why nothing, or what, was requested."""
        parts = [f"{counted(self.open_count, 'batch', 'batches')} in flight"]
        if self.cut.lingering_count:
            parts.append(
                f"{counted(self.cut.lingering_count, 'event')} held back for a fuller batch (OUTBOX_LINGER_SECONDS)"
            )
        if self.is_probing:
            parts.append("one at a time until a delivery succeeds, because the latest failed for a passing reason")
        if self.parked_count:
            parts.append(f"{self.parked_count} parked, a person must look ('outbox status')")
        if self.other_day_count:
            parts.append(f"{self.other_day_count} of a day that is no partition, delivered under the nearest that is")
        if self.is_held_back:
            parts.append(
                f"{counted(self.held_back_count, 'batch', 'batches')} and all pending events held back, because "
                "OUTBOX_START_DATE is in the future and no day is a partition: set an earlier one"
            )
        return ", ".join(parts)


def plan_tick(engine: Engine, settings: Settings, *, days: tuple[date, date], seen: Seen | None = None) -> Tick:
    """Cut what is pending unless too much is in flight, then draw attempts for due batches, of whatever day.

    Parked batches and batches that a replay delivers again do not count against the limit, so they hold nothing up.
    After a transient failure one batch at a time is requested until one is delivered: a server that has just come back
    is not stormed. With *days* that end before they begin nothing is done: no run could be started for any batch, and
    what is not cut yet is cut under its right day once there is one. Raises ConfigurationError when by what was *seen*
    the event log is another outbox's, WitnessError when it has deliveries that this ledger does not know.
    """
    found = _read_open(engine, settings, days, seen)
    if days[0] > days[1]:
        return Tick(
            open_count=found.in_flight, parked_count=found.parked, held_back_count=found.in_flight, is_held_back=True
        )
    room = settings.max_open_batches - found.in_flight
    limit = min(room, settings.max_cuts_per_tick)
    # Runs start after their tick: while none is on its way, the first batch does not wait until the others are cut.
    budget = None if found.in_flight else _FIRST_SECONDS
    cut = CutResult()
    if room > 0:
        cut = cut_batches(engine, settings, limit=limit, stop_when_idle=True, budget_seconds=budget)
    limit = max(0, 1 - found.running) if found.is_probing else settings.max_open_batches
    requests = request_batches(engine, settings, limit=limit) if limit else []
    return Tick(
        requests,
        cut,
        found.in_flight + len(cut.batches),
        found.parked,
        other_day_count=found.other_day,
        is_probing=found.is_probing,
    )


def _read_open(engine: Engine, settings: Settings, days: tuple[date, date], seen: Seen | None) -> OpenBatches:
    with ledger_transaction(engine) as connection:
        check_version(connection)
        if seen is not None:
            require_own(connection, settings.clickhouse_table, seen)
        return count_open(connection, days=days, passing_kinds=PASSING_KINDS)
