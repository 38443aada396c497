"""Repair what a comparison found, by the protocol of any delivery: lease, fence, new generation, proof, mark.

Invariant: only batches that were found to differ are touched, and no row is deleted but older generations of theirs.
What cannot be repaired from here (pruned events, rows of unknown batches) is left and named.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.counts import counted
from outbox_pipeline.days import Window
from outbox_pipeline.operations.hidden import deliver_hidden
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.findings import Difference, Reconciled
from outbox_pipeline.operations.reconcile.untracked import put_back
from outbox_pipeline.operations.replay import Outcome, Replayed, batches_of_days, left_alone, redeliver
from outbox_pipeline.postgres.conditions import read_conditions
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.reconcile import read_processed
from outbox_pipeline.stores import Stores


@dataclass(frozen=True)
class Repaired:
    """What a repair did, and in sentences what it had to leave."""

    batches: tuple[Replayed, ...] = ()
    put_back: int = 0
    moved: int = 0
    left: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """True when nothing is left to do."""
        return not self.left

    @property
    def redelivered(self) -> tuple[Replayed, ...]:
        """The batches that were delivered again."""
        return tuple(item for item in self.batches if item.outcome == Outcome.REDELIVERED)


def repair(
    stores: Stores, found: Reconciled, *, run_id: str | None = None, on_batch: Callable[[], None] = lambda: None
) -> Repaired:
    """Deliver each differing batch again, put untracked events back and move hidden ones, which the next cut takes.

    Hidden events stand at positions of old batches; where the sequence is behind it is set forward. *on_batch* is
    called after each batch.
    """
    # First: a batch with another event at one of its positions cannot be sent as it was.
    moved = deliver_hidden(stores) if found.late or _is_behind(stores) else 0
    batches = tuple(_redelivered(stores, found.differences, run_id, on_batch))
    count = put_back(stores, found.window) if found.untracked else 0
    return Repaired(batches, count, moved, tuple(_left(stores, found, batches)))


def differences_left(stores: Stores, found: Reconciled) -> list[str]:
    """Say in sentences what a comparison found and is not repaired."""
    said = [f"Batch {item.batch.batch_id} differs: {item.sentence}." for item in found.differences]
    said += [
        f"{counted(item.event_count, 'untracked event')} of {item.day}, neither unclaimed nor in a gap, a batch or "
        f"quarantine, at {item.positions}."
        for item in found.untracked
    ]
    if found.untracked or not all(item.is_pruned for item in found.differences):
        said.append("Run 'outbox reconcile --repair' to repair this.")
    said += [late.sentence for late in found.late]
    return said + list(_beyond_repair(stores, found))


def prove_days(
    stores: Stores, days: Window, *, run_id: str | None = None, on_batch: Callable[[], None] = lambda: None
) -> list[Replayed]:
    """Compare these days and repair them; return what was done with each batch of theirs, those left alone too.

    *on_batch* is called after each batch that was repaired.
    """
    batches = batches_of_days(stores.engine, days.first_day, days.last_day)
    open_batches = [batch for batch in batches if batch.status != BatchStatus.PROCESSED]
    found = reconcile(stores, days)
    return [
        *(Replayed(batch_id, Outcome.PROVEN, row_count) for batch_id, row_count in found.whole),
        *(Replayed(batch.batch_id, Outcome.LEFT_ALONE, 0, left_alone(batch)) for batch in open_batches),
        *repair(stores, found, run_id=run_id, on_batch=on_batch).batches,
    ]


def _redelivered(
    stores: Stores, differences: Iterable[Difference], run_id: str | None, on_batch: Callable[[], None]
) -> Iterator[Replayed]:
    for difference in differences:
        yield _redeliver(stores, difference, run_id)
        on_batch()


def _is_behind(stores: Stores) -> bool:
    with ledger_transaction(stores.engine) as connection:
        conditions = read_conditions(connection)
    return conditions.last_drawn < conditions.last_known


def _redeliver(stores: Stores, difference: Difference, run_id: str | None) -> Replayed:
    batch_id = difference.batch.batch_id
    with ledger_transaction(stores.engine) as connection:
        fresh = read_processed(connection, [batch_id])
    if not fresh or fresh[0].generation != difference.batch.generation:
        return Replayed(batch_id, Outcome.LEFT_ALONE, 0, "another run delivers it, or has just delivered it")
    return redeliver(stores, fresh[0], difference.sentence, run_id=run_id)


def _left(stores: Stores, found: Reconciled, batches: tuple[Replayed, ...]) -> Iterator[str]:
    for item in batches:
        if item.outcome in (Outcome.FAILED, Outcome.PRUNED):
            yield f"Batch {item.batch_id}: {item.outcome}. {item.detail}"
    yield from _beyond_repair(stores, found)


def _beyond_repair(stores: Stores, found: Reconciled) -> Iterator[str]:
    for rows in found.unknown:
        yield rows.sentence
    more = found.unknown_batches - len({rows.batch_id for rows in found.unknown})
    if more:
        yield f"{more:,} more unknown batches: does another outbox write into {stores.client.table}?"
    parked = sum(day.parked_batches for day in found.days)
    if parked:
        yield (
            f"{counted(parked, 'batch', 'batches')} parked: 'outbox status' shows the last error, 'outbox resume' "
            "has them tried again."
        )
