"""Statements on gaps: positions that were not visible when a cut passed them.

Invariant: a gap is forgotten only by a statement that began after all its holders were seen to be gone, and that looked
at all of it. Each statement looks at a bounded portion, however much has to be settled.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import gap

#: Stretches of positions that one statement probes at most.
MAX_PROBED_STRETCHES = 20_000
#: Events that one statement moves back at most.
MAX_MOVED_EVENTS = 100_000
#: Stretches in one row: looking at a portion of them writes no more than this again.
STRETCHES_A_GAP = 5_000
#: Stands among the holders of positions that no cut has looked at yet. No transaction has this id, so they are due at
#: once.
NOT_LOOKED_AT = "not looked at"

#: A prepared transaction that survived a restart shows under this backend number, not under its old name.
_PREPARED = "-1/"
_MAX_GAPS = 1000


@dataclass(frozen=True)
class Settled:
    """What settling came to: whether these gaps were looked at whole, and the unclaimed positions if they changed."""

    is_whole: bool = True
    unclaimed: str | None = None


def gaps_to_settle(connection: Connection, holding: list[str]) -> list[int]:
    """Return the ids of gaps of which a holder is not among *holding* any more, oldest first. Changes nothing."""
    rows = connection.execute(
        select(gap.c.gap_id)
        .where(~gap.c.holders.contained_by(holding) | (gap.c.holders == []))
        .order_by(gap.c.gap_id)
        .limit(_MAX_GAPS)
    )
    return list(rows.scalars())


def settle_gaps(
    connection: Connection,
    gap_ids: list[int],
    *,
    holding: list[str],
) -> Settled:
    """Put what has become visible in these gaps back into `unclaimed`; forget what no transaction can fill any more.

    Looks at MAX_PROBED_STRETCHES stretches and takes MAX_MOVED_EVENTS events out at most; the rest of the gaps stays
    due. *holding* must come from an earlier statement of the same transaction.
    """
    prepared = [holder for holder in holding if holder.startswith(_PREPARED)]
    row = connection.execute(
        query("settle_gaps"),
        {
            "gap_ids": gap_ids,
            "holding": holding,
            "prepared": prepared,
            "max_stretches": MAX_PROBED_STRETCHES,
            "max_events": MAX_MOVED_EVENTS,
            "stretches_a_gap": STRETCHES_A_GAP,
        },
    ).one()
    return Settled(row.is_whole and len(gap_ids) < _MAX_GAPS, row.unclaimed)


def set_aside(connection: Connection, *, beyond: int, last_drawn: int, holders: list[str]) -> bool:
    """Make gaps of the unclaimed positions between the first *beyond* stretches and the open end.

    Returns whether there were any. No cut need have looked there: these gaps are due at once. *last_drawn* must have
    been read before *holders*, both under the lock on `unclaimed`.
    """
    moved = connection.scalar(
        query("set_aside"),
        {
            "max_stretches": beyond,
            "last_drawn": last_drawn,
            "holders": [*holders, NOT_LOOKED_AT],
            "stretches_a_gap": STRETCHES_A_GAP,
        },
    )
    return bool(moved)
