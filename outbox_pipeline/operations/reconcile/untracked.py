"""Untracked events, and the way back: a mistake by hand or a defect would make one.

Invariant: a position is put back only when a snapshot shows it untracked that was taken under the lock on `unclaimed`;
otherwise two of these at once would put it into `unclaimed` and a batch, and stop every cut.
"""

from collections import defaultdict
from collections.abc import Iterator
from datetime import date

from sqlalchemy import Connection

from outbox_pipeline.days import UntrackedEvents, Window
from outbox_pipeline.logs import log
from outbox_pipeline.postgres import reconcile as ledger
from outbox_pipeline.postgres.conditions import require_own_cluster
from outbox_pipeline.postgres.cut import lock_unclaimed
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.stores import Stores

#: Positions looked at in one statement.
_SLICE = 2_000_000

#: How much of a set of positions is shown.
_SHOWN_CHARACTERS = 200


def find_untracked(stores: Stores, window: Window) -> list[UntrackedEvents]:
    """Return the untracked events around the window's batches, one item a day and slice of positions.

    Their days may lie outside of the window: an event's day is when it was recorded, and positions overlap.
    """
    found = []
    for first, last in _slices(stores, window):
        with ledger_transaction(stores.engine) as connection:
            found += ledger.find_untracked(connection, first, last)
    return _by_day(found)


def put_back(stores: Stores, window: Window) -> int:
    """Make the untracked events of the window unclaimed again, so that the next cut takes them; return how many."""
    count = 0
    for positions in _slices(stores, window):
        # Looked for first without the lock, which holds up cuts: nearly always there is nothing.
        with ledger_transaction(stores.engine) as connection:
            has_some = any(item.day in window for item in ledger.find_untracked(connection, *positions))
        if has_some:
            lock_timeout = stores.settings.lock_timeout_seconds
            with ledger_transaction(stores.engine, lock_timeout_seconds=lock_timeout) as connection:
                count += _put_back(connection, window, positions)
    if count:
        log().warning("strays_put_back", count=count)
    return count


def _put_back(connection: Connection, window: Window, positions: tuple[int, int]) -> int:
    require_own_cluster(connection)
    lock_unclaimed(connection)
    untracked = [item for item in ledger.find_untracked(connection, *positions) if item.day in window]
    ledger.put_back(connection, untracked)
    return sum(item.event_count for item in untracked)


def _slices(stores: Stores, window: Window) -> Iterator[tuple[int, int]]:
    with ledger_transaction(stores.engine) as connection:
        first, last = ledger.untracked_bounds(connection, window.first_day, window.last_day)
    while first <= last:
        yield first, min(first + _SLICE - 1, last)
        first += _SLICE


def _by_day(found: list[UntrackedEvents]) -> list[UntrackedEvents]:
    counted: dict[date, list[UntrackedEvents]] = defaultdict(list)
    for item in found:
        counted[item.day].append(item)
    return [
        UntrackedEvents(day, sum(item.event_count for item in some), some[0].positions[:_SHOWN_CHARACTERS])
        for day, some in counted.items()
    ]
