"""Statements on events that hide at positions of old batches: the sequence went back, and drew these positions again.

No cut takes them, because their positions are done. An event row never changes, so each is written again under a new
position, by a function of the schema, in the transaction that deletes it. What is suspected travels through a temporary
table; the caller holds the lock on `unclaimed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from outbox_pipeline.errors import LedgerError
from outbox_pipeline.postgres.queries import query


@dataclass(frozen=True)
class Suspect:
    """A processed batch and the first and last of those of its positions where events stand that may not be its own."""

    batch_id: UUID
    first_position: int
    last_position: int


def stage_hidden(connection: Connection, *, looks_at_all: bool) -> list[Suspect]:
    """List the events that may hide in a temporary table; return the batches that must be looked at.

    Of batches that have their events only when it *looks_at_all*, which reads every event of theirs.
    """
    connection.execute(
        text(
            "CREATE TEMPORARY TABLE hidden (batch_id uuid NOT NULL, position bigint NOT NULL, event_id uuid NOT NULL,"
            " is_suspect boolean NOT NULL) ON COMMIT DROP"
        )
    )
    connection.execute(query("stage_hidden"), {"looks_at_all": looks_at_all})
    connection.execute(text("CREATE INDEX ON pg_temp.hidden (position)"))
    connection.execute(text("ANALYZE pg_temp.hidden"))
    rows = connection.execute(
        text(
            "SELECT batch_id, min(position) AS first_position, max(position) AS last_position"
            " FROM pg_temp.hidden WHERE is_suspect GROUP BY batch_id ORDER BY 2"
        )
    )
    return [Suspect(**row._mapping) for row in rows]


def acquit(connection: Connection, batch_id: UUID) -> None:
    """Take the events of a batch that holds its own off the list."""
    connection.execute(
        text("DELETE FROM pg_temp.hidden WHERE is_suspect AND batch_id = :batch_id"), {"batch_id": batch_id}
    )


def acquit_delivered(connection: Connection, batch_id: UUID, rows: Sequence[tuple[int, UUID]]) -> None:
    """Take those events of a batch off the list whose rows ClickHouse shows under it."""
    statement = text(
        "DELETE FROM pg_temp.hidden"
        " USING unnest(CAST(:positions AS bigint[]), CAST(:event_ids AS uuid[])) AS shown (position, event_id)"
        " WHERE hidden.is_suspect AND hidden.batch_id = :batch_id AND hidden.position = shown.position"
        " AND hidden.event_id = shown.event_id"
    )
    parameters = {
        "batch_id": batch_id,
        "positions": [position for position, _ in rows],
        "event_ids": [event_id for _, event_id in rows],
    }
    connection.execute(statement, parameters)


def read_hidden(connection: Connection, *, limit: int) -> tuple[int, list[tuple[int, UUID, UUID]]]:
    """Return how many events hide, and of at most *limit* position, event id and the batch that had the position."""
    count = connection.scalar(text("SELECT count(*) FROM pg_temp.hidden")) or 0
    named = text("SELECT position, event_id, batch_id FROM pg_temp.hidden ORDER BY position LIMIT :limit")
    rows = connection.execute(named, {"limit": limit})
    return count, [(row.position, row.event_id, row.batch_id) for row in rows]


def move_hidden(connection: Connection) -> int:
    """Give the events on the list new positions, which are unclaimed; return how many.

    The sequence must stand above every position that is in use. Raises LedgerError when not all can be written again;
    the caller's transaction must end then.
    """
    statement = text(
        "SELECT outbox.move_events(ARRAY(SELECT position FROM pg_temp.hidden ORDER BY position)) AS moved,"
        " (SELECT count(*) FROM pg_temp.hidden) AS hidden"
    )
    row = connection.execute(statement).one()
    if row.moved != row.hidden:
        raise LedgerError(
            f"Only {row.moved:,} of {row.hidden:,} events at positions of old batches could be written again under new "
            "positions, so the ledger is unchanged: look for triggers of outbox.event that are not the outbox's own "
            "and hold rows back, switch them off, then repeat this command."
        )
    return int(row.moved)


def read_subscriptions(connection: Connection) -> list[str]:
    """Return the names of PostgreSQL's subscriptions that write into tables of the outbox, switched off or not.

    The view shows every role the names, and no role needs a right on `pg_subscription`.
    """
    statement = text(
        "SELECT DISTINCT subname::text FROM pg_stat_subscription WHERE subid IN ("
        "SELECT srsubid FROM pg_subscription_rel JOIN pg_class ON pg_class.oid = srrelid"
        " WHERE relnamespace = 'outbox'::regnamespace) ORDER BY 1"
    )
    return list(connection.execute(statement).scalars())
