"""Statements that move positions from `unclaimed` into a batch or a gap.

The order between them is the guarantee, see `relay.cut`: lock, read which transactions may still insert, look for
visible events, then read those transactions again. Positions travel as PostgreSQL's own text; a set of 200,000 ranges
costs nothing to hand through.
"""

from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from sqlalchemy import Connection, cast, insert, select, text
from sqlalchemy.dialects.postgresql import INT8MULTIRANGE

from outbox_pipeline.postgres import gaps
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import batch, unclaimed

#: Stretches of unclaimed positions that one cut looks at, beside the open end. A probe takes 2.5 µs, 10 with an event.
MAX_UNCLAIMED_STRETCHES = 10_000


@dataclass(frozen=True)
class PickedEvents:
    """Visible events chosen for one batch; sets of positions are int8multirange text."""

    event_count: int
    positions: str
    first_position: int
    last_position: int
    recorded_on: date
    context_bytes: int
    oldest_recorded_at: datetime
    oldest_age_seconds: float
    looked_count: int
    visible: str


def lock_unclaimed(connection: Connection) -> None:
    """Take the lock that lets one cutter at a time change the sets; nothing is read by it."""
    connection.execute(select(unclaimed.c.is_only_row).with_for_update())


def pick_events(
    connection: Connection, unclaimed_positions: str, *, max_events: int, max_bytes: int, first_day: date
) -> PickedEvents | None:
    """Choose the events of the next batch, None when nothing is visible. Changes nothing.

    Takes events of one UTC day, at most *max_events*, at most *max_bytes* of context (one event may exceed it).
    """
    limits = {
        "unclaimed": unclaimed_positions,
        "max_events": max_events,
        "max_bytes": max_bytes,
        "first_day": first_day,
    }
    found = dict(connection.execute(query("pick_events"), limits).one()._mapping)
    if not found.pop("is_whole"):
        found = dict(connection.execute(query("pick_part"), limits).one()._mapping)
    return PickedEvents(**found) if found["event_count"] else None


def read_last_drawn(connection: Connection) -> int:
    """Return the highest position drawn so far; 0 before the first. Read before `read_holders`."""
    return connection.scalar(text("SELECT coalesce(pg_sequence_last_value('outbox.event_position_seq'), 0)")) or 0


def read_holders(connection: Connection) -> list[str]:
    """Return the virtual transactions that may still insert. A statement of its own, after the sequence was read."""
    return list(connection.scalar(query("holders")) or [])


def insert_batch(connection: Connection, batch_id: UUID, cut_number: int, picked: PickedEvents) -> None:
    """Write the batch under its number: its events go from unclaimed to cut.

    PostgreSQL itself refuses (exclusion constraint) when one of them is in another batch already.
    """
    connection.execute(
        insert(batch).values(
            batch_id=batch_id,
            positions=cast(picked.positions, INT8MULTIRANGE),
            first_position=picked.first_position,
            last_position=picked.last_position,
            recorded_on=picked.recorded_on,
            event_count=picked.event_count,
            context_bytes=picked.context_bytes,
            oldest_recorded_at=picked.oldest_recorded_at,
            cut_number=cut_number,
        )
    )


def take_positions(
    connection: Connection,
    picked: PickedEvents | None,
    *,
    unclaimed_positions: str,
    last_drawn: int,
    holders: list[str],
    cut_number: int,
) -> bool:
    """Take the picked events out of `unclaimed` and what was not visible below them into gaps.

    The ledger's first day moves back to the picked events' day where that is earlier. When nothing was visible at all
    (None), every position that was drawn goes into gaps.
    Returns whether there was a gap. *cut_number* is the highest that a batch has now; *last_drawn* must have been read
    before *holders*.
    """
    gap_count = connection.scalar(
        query("take_positions"),
        {
            "unclaimed": unclaimed_positions,
            "picked": picked.positions if picked else "{}",
            "visible": picked.visible if picked else "{}",
            "last_position": picked.last_position if picked else last_drawn,
            "last_drawn": last_drawn,
            "recorded_on": picked.recorded_on if picked else None,
            "holders": holders,
            "cut_number": cut_number,
            "stretches_a_gap": gaps.STRETCHES_A_GAP,
        },
    )
    return bool(gap_count)


def forget_batched(connection: Connection) -> None:
    """Take positions that are in a batch already out of `unclaimed`; only a mistake by hand puts them there."""
    connection.execute(
        text(
            "UPDATE outbox.unclaimed SET positions = unclaimed.positions - coalesce((SELECT range_agg(batch.positions)"
            " FROM outbox.batch WHERE batch.positions && unclaimed.positions), '{}'::int8multirange)"
        )
    )
