"""Cut pending events into batches.

Invariant: an event leaves `unclaimed` only into one batch, and a position only into a batch or a gap, in one
transaction. Sequence order is not commit order, so what is not visible below what was picked is remembered as a gap
together with the transactions that may still fill it, and looked at again once one of them is gone.
One look probes a bounded number of stretches of positions, whatever has accumulated: of the unclaimed set the first
ones and the open end, of the gaps that are due a portion.
Events of a batch that was split are cut into batches of half its size at most.
"""

import time
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from uuid import UUID

from sqlalchemy import Connection, Engine

from outbox_pipeline.errors import ConstraintError
from outbox_pipeline.ids import uuid7
from outbox_pipeline.postgres import cut as ledger
from outbox_pipeline.postgres import gaps
from outbox_pipeline.postgres.conditions import LedgerConditions, read_conditions, require_sound
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.split import half_of_former
from outbox_pipeline.relay.points import Point, announce
from outbox_pipeline.settings import Settings

#: A cut looks at so many events, whatever their size: a few milliseconds.
_MIN_SCAN_EVENTS = 10_000

#: Part of the bytes that those looked at are expected to use, so that nearly always all of them are taken.
_FILLED = 0.95


@dataclass(frozen=True)
class CutBatch:
    """One batch just cut; `is_last` when it took all that was visible, so only later commits can follow it."""

    batch_id: UUID
    recorded_on: date
    event_count: int
    context_bytes: int
    is_last: bool


@dataclass(frozen=True)
class CutResult:
    """What one call of `cut_batches` did."""

    batches: list[CutBatch] = field(default_factory=list)
    lingering_count: int = 0

    @property
    def event_count(self) -> int:
        """Events put into batches by this call."""
        return sum(batch.event_count for batch in self.batches)


@dataclass(frozen=True)
class _Look:
    """What one look at the ledger came to; `is_whole` when nothing is left to look at that may be visible."""

    is_whole: bool
    batch: CutBatch | None = None
    lingering_count: int = 0


def cut_batches(
    engine: Engine, settings: Settings, *, limit: int, stop_when_idle: bool = False, budget_seconds: float | None = None
) -> CutResult:
    """Cut up to *limit* batches from the pending events; stop early when nothing is left that may be cut now.

    What commits during the call waits for the next one: at once it would make a batch, and a run, of a few events.
    Each look is bounded; where gaps are left over, the next look takes them up. *stop_when_idle* leaves that to the
    next call as soon as a look cut nothing, so the call takes no longer than one such look. After *budget_seconds* no
    further batch is begun, so that what is cut by then does not wait for the rest.

    Raises LedgerError when going on could lose or double events (another cluster, a sequence set back, a table that
    is not as it must be), TransientError when PostgreSQL cannot do it now.
    """
    cut: list[CutBatch] = []
    started = time.monotonic()
    while len(cut) < limit:
        look = _look(engine, settings)
        if look.batch is None:
            if look.is_whole or look.lingering_count or stop_when_idle:
                return CutResult(cut, look.lingering_count)
            continue
        cut.append(look.batch)
        announce(Point.CUT)
        if look.batch.is_last or (budget_seconds is not None and time.monotonic() - started >= budget_seconds):
            break
    return CutResult(cut)


def _look(engine: Engine, settings: Settings) -> _Look:
    lock_timeout = settings.lock_timeout_seconds
    try:
        with ledger_transaction(engine, lock_timeout_seconds=lock_timeout) as connection:
            return _cut_one(connection, settings)
    except ConstraintError:
        # Positions that are unclaimed and in a batch at once (put there by hand) would stop every cut for ever.
        with ledger_transaction(engine, lock_timeout_seconds=lock_timeout) as connection:
            ledger.lock_unclaimed(connection)
            ledger.forget_batched(connection)
            return _cut_one(connection, settings)


def _cut_one(connection: Connection, settings: Settings) -> _Look:
    # Each line below is a statement of its own and the order matters. A snapshot taken before the lock would forget an
    # event that commits in between. A transaction that could fill a position drawn by `conditions` either is among
    # the holders read next or has ended before the events are looked for, which then shows what it committed.
    ledger.lock_unclaimed(connection)
    conditions = read_conditions(connection)
    require_sound(conditions)
    holding = ledger.read_holders(connection)
    unclaimed, is_whole = _settle(connection, conditions, holding)
    max_events = _events_to_look_at(conditions, settings)
    pick = partial(ledger.pick_events, connection, unclaimed, first_day=conditions.first_day(settings.start_date))
    picked = pick(max_events=max_events, max_bytes=settings.batch_max_bytes)
    half = half_of_former(connection, picked.positions) if picked is not None and conditions.has_former else None
    if half is not None:
        # ClickHouse lacked the memory for the batch that had them.
        max_events = min(max_events, half.max_events)
        picked = pick(max_events=max_events, max_bytes=min(settings.batch_max_bytes, half.max_bytes))
    if picked is not None and _should_linger(picked, settings, max_events):
        return _Look(is_whole, lingering_count=picked.event_count)
    if picked is None and conditions.stretch_count == 1:
        return _Look(is_whole)
    # Transactions that came since cannot fill what was drawn before; naming them too costs a look when they end.
    holders = sorted({*holding, *ledger.read_holders(connection)})
    batch, cut_number = None, conditions.last_cut_number
    if picked is not None:
        is_last = is_whole and picked.event_count == picked.looked_count < max_events
        batch = CutBatch(uuid7(), picked.recorded_on, picked.event_count, picked.context_bytes, is_last)
        cut_number += 1
        ledger.insert_batch(connection, batch.batch_id, cut_number, picked)
    ledger.take_positions(
        connection,
        picked,
        unclaimed_positions=unclaimed,
        last_drawn=conditions.last_drawn,
        holders=holders,
        cut_number=cut_number,
    )
    return _Look(is_whole, batch)


def _settle(connection: Connection, conditions: LedgerConditions, holding: list[str]) -> tuple[str, bool]:
    """Settle a portion of the gaps that are due; return what to look at, and whether that is all there is."""
    if conditions.stretch_count >= ledger.MAX_UNCLAIMED_STRETCHES and gaps.set_aside(
        connection, beyond=ledger.MAX_UNCLAIMED_STRETCHES, last_drawn=conditions.last_drawn, holders=holding
    ):
        return conditions.unclaimed, False
    gap_ids = gaps.gaps_to_settle(connection, holding)
    if not gap_ids:
        return conditions.unclaimed, True
    settled = gaps.settle_gaps(connection, gap_ids, holding=holding)
    return settled.unclaimed or conditions.unclaimed, settled.is_whole


def _events_to_look_at(conditions: LedgerConditions, settings: Settings) -> int:
    # As many as fit at the size of the last batch's events: to choose among those looked at takes three times as long
    # as to take them all. Where events have become smaller, a batch or two are smaller than they could be.
    if not conditions.bytes_an_event:
        return settings.batch_max_events
    fitting = int(_FILLED * settings.batch_max_bytes / conditions.bytes_an_event)
    return min(settings.batch_max_events, max(_MIN_SCAN_EVENTS, fitting))


def _should_linger(picked: ledger.PickedEvents, settings: Settings, max_events: int) -> bool:
    # Fewer picked than looked at: the bytes were used up, or another day has begun. Nothing can join this batch then.
    is_full = picked.event_count >= max_events or picked.event_count < picked.looked_count
    # A negative age (a clock set back) waits for nothing.
    return not is_full and 0 <= picked.oldest_age_seconds < settings.linger_seconds
