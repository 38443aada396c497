"""Statements on gaps: positions that were not visible when a cut passed them.

Invariant: a gap is forgotten only by a statement that began after all its holders were seen to be gone.
"""

from sqlalchemy import Connection, select

from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import gap

#: A prepared transaction that survived a restart shows under this backend number, not under its old name.
_PREPARED = "-1/"
_MOST_GAPS = 1000


def gaps_to_settle(connection: Connection, holding: list[str]) -> list[int]:
    """Return the ids of gaps of which a holder is not among *holding* any more, oldest first. Changes nothing."""
    rows = connection.execute(
        select(gap.c.gap_id)
        .where(~gap.c.holders.contained_by(holding) | (gap.c.holders == []))
        .order_by(gap.c.gap_id)
        .limit(_MOST_GAPS)
    )
    return list(rows.scalars())


def settle_gaps(connection: Connection, gap_ids: list[int], *, holding: list[str]) -> None:
    """Put what has become visible in these gaps back into `unclaimed`; forget what nobody can fill any more.

    *holding* must come from an earlier statement of the same transaction.
    """
    prepared = [holder for holder in holding if holder.startswith(_PREPARED)]
    connection.execute(query("settle_gaps"), {"gap_ids": gap_ids, "holding": holding, "prepared": prepared})
