"""Keep the outbox small: delete events that were delivered OUTBOX_RETENTION_DAYS ago, a batch at a time.

Invariant: an event goes only when its batch is processed, ClickHouse has just shown exactly the batch's rows, and
the batch was not sent again since that look. What is old is so by the clock of PostgreSQL, ClickHouse and this host.
What is unclaimed, in a gap, in flight, parked or held stays; the trigger on `outbox.event` refuses to delete it for
any role. Each batch is one short transaction, so a prune that is killed has pruned some batches whole and the others
not at all.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from enum import StrEnum
from itertools import chain
from uuid import UUID

from sqlalchemy import Connection

from outbox_pipeline.batches import Batch
from outbox_pipeline.clickhouse.fences import FIRST, drop_fences, old_fences
from outbox_pipeline.clickhouse.witness import drop_cuts
from outbox_pipeline.logs import log
from outbox_pipeline.postgres import elsewhere
from outbox_pipeline.postgres import retention as store
from outbox_pipeline.postgres.conditions import require_own_cluster
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import read_batch
from outbox_pipeline.postgres.rechecks import note_proved
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.postgres.witness import first_kept
from outbox_pipeline.relay.delivery import proof_differences
from outbox_pipeline.relay.lost_log import require_log
from outbox_pipeline.relay.witness import require_own_log
from outbox_pipeline.stores import Stores

#: Batches that ClickHouse shows differently before a prune gives up: a person must look, and proving costs time.
MAX_REFUSED = 100

#: Rest after each step, in times of what it took: deleting is faster than delivering and must not crowd it out.
_REST = 4.0

_BATCHES_A_LOOK = 100
_DISCARDED_A_STEP = 5_000
_FENCES_A_STEP = 500
_IDS_A_STEP = 5_000


class Reason(StrEnum):
    """Why a batch that is old enough keeps its events."""

    DIFFERS = "differs in ClickHouse"
    ELSEWHERE = "positions in two places"
    IN_USE = "in use"


@dataclass(frozen=True)
class Skipped:
    """One batch that was not pruned, and why in words."""

    batch_id: UUID
    recorded_on: date
    event_count: int
    reason: Reason
    detail: str

    @property
    def is_refused(self) -> bool:
        """True when a person must look; False when the next prune takes it by itself."""
        return self.reason != Reason.IN_USE


@dataclass(frozen=True)
class Pruned:
    """What a prune did, or with `is_dry_run` would do.

    `discarded`: events that were discarded or replaced in quarantine. `fences`: batches whose rows in ClickHouse's
    fence table went. `is_finished` is False when the time was up or too many batches were refused before the end.
    `forgotten_ids`: ids of events that another instance delivered, which an adoption had kept.
    `oldest_kept_at`: when the oldest event of a batch that still has its events was recorded.
    """

    retention_days: int
    is_dry_run: bool = False
    batches: int = 0
    events: int = 0
    discarded: int = 0
    fences: int = 0
    forgotten_ids: int = 0
    skipped: tuple[Skipped, ...] = ()
    is_finished: bool = True
    oldest_kept_at: datetime | None = None
    seconds: float = 0.0

    @property
    def refused(self) -> tuple[Skipped, ...]:
        """The batches that a person must look at."""
        return tuple(item for item in self.skipped if item.is_refused)

    @property
    def reasons(self) -> dict[str, int]:
        """How many batches were skipped for which reason."""
        return dict(Counter(str(item.reason) for item in self.skipped))


#: What is told after each batch.
Listener = Callable[[Pruned], None]


def prune(
    stores: Stores, *, dry_run: bool = False, seconds: float | None = None, on_progress: Listener | None = None
) -> Pruned:
    """Prune what is older than OUTBOX_RETENTION_DAYS, oldest first; with *dry_run* only look at what would go.

    Stops between two batches once *seconds* are over; the next prune goes on. With 0 days it does nothing. A batch
    that ClickHouse does not show whole is refused and named. Raises ConfigurationError, LedgerError or TransientError
    when either side is not ready; what was pruned before that stays pruned.
    """
    days = stores.settings.retention_days
    started = time.monotonic()
    result = Pruned(days, is_dry_run=dry_run)
    _require_ready(stores)
    age = _Age(_earliest_now(stores), days)
    for done in _steps(stores, age, dry_run=dry_run) if days else ():
        result = _plus(result, done)
        if on_progress is not None:
            on_progress(result)
        is_over = seconds is not None and time.monotonic() - started >= seconds
        if is_over or len(result.refused) >= MAX_REFUSED:
            result = replace(result, is_finished=False)
            break
    with ledger_transaction(stores.engine) as connection:
        oldest = store.oldest_kept(connection)
    return replace(result, oldest_kept_at=oldest, seconds=round(time.monotonic() - started, 3))


def _require_ready(stores: Stores) -> None:
    with ledger_transaction(stores.engine) as connection:
        check_version(connection)
        require_own_cluster(connection)
    require_log(stores.engine, stores.client)
    require_own_log(stores)


@dataclass(frozen=True)
class _Age:
    """How old what is pruned must be, and by which time."""

    now: datetime
    days: int


def _earliest_now(stores: Stores) -> datetime:
    # PostgreSQL's own clock is read by each statement.
    (row,) = stores.client.rows("SELECT toUnixTimestamp64Micro(now64(6)) AS micros")
    return min(datetime.now(UTC), datetime.fromtimestamp(row["micros"] / 1e6, UTC))


def _steps(stores: Stores, age: _Age, *, dry_run: bool) -> Iterator[Pruned]:
    """Yield what each bounded step did, or would do: batches, discarded events, fences, the witness's rows."""
    if not dry_run:
        batches = (_prune_one(stores, batch, age) for batch in _old_batches(stores, age))
        discarded, fences = _prune_discarded(stores, age), _clean_fence(stores, age)
        yield from _rested(chain(batches, discarded, fences, _clean_witness(stores, age), _forget_ids(stores, age)))
        return
    for batch in _old_batches(stores, age):
        yield _look_at(stores, batch, age.days)
    with ledger_transaction(stores.engine) as connection:
        yield Pruned(
            age.days,
            discarded=store.count_old_discarded(connection, now=age.now, days=age.days),
            forgotten_ids=elsewhere.count_old(connection, now=age.now, days=age.days),
        )


def _rested(steps: Iterator[Pruned]) -> Iterator[Pruned]:
    started = time.monotonic()
    for done in steps:
        seconds = time.monotonic() - started
        yield done
        time.sleep(_REST * seconds)
        started = time.monotonic()


def _old_batches(stores: Stores, age: _Age) -> Iterator[Batch]:
    after: store.Place | None = None
    while True:
        with ledger_transaction(stores.engine) as connection:
            places = store.old_batches(connection, now=age.now, days=age.days, after=after, limit=_BATCHES_A_LOOK)
        for after in places:
            with ledger_transaction(stores.engine) as connection:
                batch = read_batch(connection, after[1])
            yield batch
        if len(places) < _BATCHES_A_LOOK:
            return


def _look_at(stores: Stores, batch: Batch, days: int) -> Pruned:
    skipped = _difference(stores, batch)
    if skipped is None:
        with ledger_transaction(stores.engine) as connection:
            skipped = _conflict(connection, batch)
    if skipped is not None:
        return Pruned(days, skipped=(skipped,))
    return Pruned(days, batches=1, events=_event_count(batch))


def _prune_one(stores: Stores, batch: Batch, age: _Age) -> Pruned:
    # The proof comes before the lock, so that no transaction waits for ClickHouse; the lock then finds out whether the
    # batch was sent again in between.
    skipped = _difference(stores, batch)
    if skipped is None:
        with ledger_transaction(stores.engine) as connection:
            require_own_cluster(connection)
            if store.lock_old(connection, batch, now=age.now, days=age.days):
                skipped = _conflict(connection, batch)
                event_count = 0 if skipped else _delete(connection, batch)
            else:
                skipped = _skipped(batch, Reason.IN_USE, "it is being sent again or pruned by another process")
    if skipped is not None:
        if skipped.is_refused:
            log().warning("prune_refused", batch_id=str(batch.batch_id), reason=str(skipped.reason))
        return Pruned(age.days, skipped=(skipped,))
    log().info("batch_pruned", batch_id=str(batch.batch_id), events=event_count)
    return Pruned(age.days, batches=1, events=event_count)


def _delete(connection: Connection, batch: Batch) -> int:
    note_proved(connection, [batch.batch_id])
    return store.prune_events(connection, batch.batch_id)


def _difference(stores: Stores, batch: Batch) -> Skipped | None:
    """Ask ClickHouse for the proof, now: afterwards nothing is left from which the batch could be sent again."""
    differences = proof_differences(stores, batch, generation=batch.generation)
    if not differences:
        return None
    detail = f"ClickHouse shows {differences}; prove the day {batch.recorded_on} to send the batch again"
    return _skipped(batch, Reason.DIFFERS, detail)


def _conflict(connection: Connection, batch: Batch) -> Skipped | None:
    found = store.position_conflict(connection, batch.batch_id)
    if not found:
        return None
    return _skipped(batch, Reason.ELSEWHERE, f"some of its positions are also in {found}, where only a hand puts them")


def _skipped(batch: Batch, reason: Reason, detail: str) -> Skipped:
    return Skipped(batch.batch_id, batch.recorded_on, _event_count(batch), reason, detail)


def _event_count(batch: Batch) -> int:
    return batch.event_count - (batch.rejected_count or 0)


def _prune_discarded(stores: Stores, age: _Age) -> Iterator[Pruned]:
    found_count = _DISCARDED_A_STEP
    while found_count == _DISCARDED_A_STEP:
        with ledger_transaction(stores.engine) as connection:
            require_own_cluster(connection)
            found_count, event_count = store.prune_discarded(
                connection, now=age.now, days=age.days, limit=_DISCARDED_A_STEP
            )
        yield Pruned(age.days, discarded=event_count)


def _clean_fence(stores: Stores, age: _Age) -> Iterator[Pruned]:
    after, found = FIRST, [FIRST] * _FENCES_A_STEP
    while len(found) == _FENCES_A_STEP:
        found = old_fences(stores.client, now=age.now, days=age.days, after=after, limit=_FENCES_A_STEP)
        with ledger_transaction(stores.engine) as connection:
            require_own_cluster(connection)
            pruned = store.which_pruned(connection, found)
        if pruned:
            drop_fences(stores.client, pruned)
        yield Pruned(age.days, fences=len(pruned))
        after = found[-1] if found else after


def _clean_witness(stores: Stores, age: _Age) -> Iterator[Pruned]:
    with ledger_transaction(stores.engine) as connection:
        require_own_cluster(connection)
        below = first_kept(connection)
    count = drop_cuts(stores.client, below=below)
    if count:
        log().info("witness_pruned", rows=count)
    yield Pruned(age.days)


def _forget_ids(stores: Stores, age: _Age) -> Iterator[Pruned]:
    after: elsewhere.Place | None = elsewhere.FIRST
    while after is not None:
        with ledger_transaction(stores.engine) as connection:
            require_own_cluster(connection)
            count, after = elsewhere.prune_elsewhere(
                connection, now=age.now, days=age.days, after=after, limit=_IDS_A_STEP
            )
        yield Pruned(age.days, forgotten_ids=count)


def _plus(result: Pruned, done: Pruned) -> Pruned:
    return replace(
        result,
        batches=result.batches + done.batches,
        events=result.events + done.events,
        discarded=result.discarded + done.discarded,
        fences=result.fences + done.fences,
        forgotten_ids=result.forgotten_ids + done.forgotten_ids,
        skipped=result.skipped + done.skipped,
    )
