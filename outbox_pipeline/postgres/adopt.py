"""Statements that write the deliveries of a lost ledger into this one, all in one transaction of `operations.adopt`.

What ClickHouse shows travels through a temporary table, so that sets are built by PostgreSQL and no row of the event
log stays in Python. The caller holds the lock on `unclaimed` from the first statement to the last.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import Connection, func, select, text, update

from outbox_pipeline.batches import BatchStatus, Proof
from outbox_pipeline.postgres import cut, elsewhere, watchdog
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import batch, event

#: Longest statement of a transaction whose limits are lifted: it may read every event.
_MAX_STATEMENT_SECONDS = 86_400

#: Room above the highest position seen, so that publishers that draw while the sequence is set cannot be ahead of it.
SEQUENCE_MARGIN = 1_000_000


@dataclass(frozen=True)
class KnownBatch:
    """What this ledger says of a batch that ClickHouse shows."""

    status: BatchStatus
    generation: int
    accepted_count: int | None
    has_foreign: bool


@dataclass(frozen=True)
class StagedBatch:
    """A batch of the old instance of which events stand here; more rows than events when ClickHouse has some twice."""

    batch_id: UUID
    event_count: int
    row_count: int
    position_sum: int


def lift_limits(connection: Connection) -> None:
    """Lift this transaction's limits, which a sensor's tick needs: this one waits for ClickHouse, and may be long.

    Of the server and of this side, which would close the connection.
    """
    watchdog.allow(connection, _MAX_STATEMENT_SECONDS)
    connection.execute(
        text(
            "SELECT set_config('statement_timeout', :limit, true),"
            " set_config('idle_in_transaction_session_timeout', '0', true)"
        ),
        {"limit": f"{_MAX_STATEMENT_SECONDS}s"},
    )


def create_stage(connection: Connection) -> None:
    """Create temporary tables for this transaction, and lift its limits: sets grow with what the others delivered."""
    lift_limits(connection)
    connection.execute(
        text(
            "CREATE TEMPORARY TABLE shown_row (batch_id uuid NOT NULL, position bigint NOT NULL, is_ours boolean"
            " NOT NULL) ON COMMIT DROP"
        )
    )
    connection.execute(text("CREATE INDEX ON pg_temp.shown_row (position)"))
    connection.execute(text("CREATE INDEX ON pg_temp.shown_row (batch_id)"))
    elsewhere.create_gathering(connection)


def read_known(connection: Connection, batch_ids: list[UUID]) -> dict[UUID, KnownBatch]:
    """Return those of the batches that this ledger knows. Changes nothing."""
    statement = text(
        "SELECT batch_id, status, generation, accepted_count, NOT isempty(foreign_positions) AS has_foreign"
        " FROM outbox.batch WHERE batch_id = ANY (CAST(:batch_ids AS uuid[]))"
    )
    rows = connection.execute(statement, {"batch_ids": batch_ids})
    return {
        row.batch_id: KnownBatch(BatchStatus(row.status), row.generation, row.accepted_count, row.has_foreign)
        for row in rows
    }


def count_delivered(connection: Connection) -> int:
    """Return how many batches are processed with at least one row in ClickHouse. Changes nothing."""
    return (
        connection.scalar(text("SELECT count(*) FROM outbox.batch WHERE status = 'processed' AND accepted_count > 0"))
        or 0
    )


def stage_rows(connection: Connection, batch_id: UUID, rows: Sequence[tuple[int, UUID]], *, up_to: int) -> None:
    """Stage rows of a batch that this ledger does not know, and gather the ids of those that are no events here.

    No event here lies beyond *up_to*.
    """
    parameters = {
        "batch_id": batch_id,
        "positions": [position for position, _ in rows],
        "event_ids": [event_id for _, event_id in rows],
        "up_to": up_to,
    }
    connection.execute(query("stage_rows"), parameters)


def drop_unmatched(connection: Connection, batch_id: UUID) -> None:
    """Take a batch of which no event stands here out of the stage."""
    connection.execute(
        text(
            "DELETE FROM pg_temp.shown_row WHERE batch_id = :batch_id AND NOT EXISTS ("
            "SELECT FROM pg_temp.shown_row WHERE batch_id = :batch_id AND is_ours)"
        ),
        {"batch_id": batch_id},
    )


def lock_open(connection: Connection) -> None:
    """Lock the open batches: no attempt freezes or marks one while it is looked at here."""
    connection.execute(text("SELECT FROM outbox.batch WHERE status <> 'processed' FOR UPDATE"))


def withdraw_unsent(connection: Connection, *, sent: Collection[UUID]) -> dict[UUID, int]:
    """Take the frozen content of open batches back whose events the old instance delivered; return attempts to fence.

    *sent* are those that have rows in ClickHouse. An attempt that is at work on one is lower than the one returned.
    """
    rows = connection.execute(query("withdraw_unsent"), {"sent": list(sent)})
    return {row.batch_id: row.attempt for row in rows}


def disown_settled(connection: Connection) -> list[tuple[int, UUID]]:
    """Leave events to the batch that has them already; return them: each stands in ClickHouse twice."""
    return [(row.position, row.event_id) for row in connection.execute(query("disown_settled"))]


def read_staged(connection: Connection) -> list[StagedBatch]:
    """Return the batches to adopt, by first position. Changes nothing."""
    rows = connection.execute(
        text(
            "SELECT batch_id, count(*) AS event_count, sum(row_count)::bigint AS row_count,"
            " sum(position) % 18446744073709551616 AS position_sum"
            " FROM (SELECT batch_id, position, count(*) AS row_count FROM pg_temp.shown_row WHERE is_ours"
            " GROUP BY batch_id, position) AS mine GROUP BY batch_id ORDER BY min(position)"
        )
    )
    return [StagedBatch(row.batch_id, row.event_count, row.row_count, int(row.position_sum)) for row in rows]


def release_positions(connection: Connection, *, keep_holders: bool) -> int:
    """Take the staged events out of all that is pending here; return how many gaps remain, in order to be settled.

    With *keep_holders* they wait for the transactions that held them, which are of this server.
    """
    connection.execute(text("ANALYZE pg_temp.shown_row"))
    return connection.scalar(query("release_positions"), {"keep_holders": keep_holders}) or 0


def insert_adopted(
    connection: Connection,
    batch_id: UUID,
    *,
    attempt: int,
    generation: int,
    has_strangers: bool,
    first_day: date,
) -> None:
    """Write a staged batch as cut; PostgreSQL refuses when one of its positions is in another batch."""
    parameters = {
        "batch_id": batch_id,
        "attempt": attempt,
        "generation": generation,
        "has_strangers": has_strangers,
        "first_day": first_day,
    }
    connection.execute(query("insert_adopted"), parameters)


def mark_adopted(connection: Connection, batch_id: UUID, proof: Proof) -> None:
    """Move a batch that was adopted in this transaction to processed, on the proof ClickHouse has just shown."""
    statement = (
        update(batch)
        .where(batch.c.batch_id == batch_id, batch.c.status == BatchStatus.CUT)
        .values(
            status=BatchStatus.PROCESSED,
            rejected={},
            proof=proof.to_json(),
            accepted_count=batch.c.event_count,
            rejected_count=0,
            processed_at=func.clock_timestamp(),
            proved_at=func.clock_timestamp(),
        )
    )
    connection.execute(statement)


def raise_generations(connection: Connection, shown: Mapping[UUID, int]) -> int:
    """Raise each batch's generation to what ClickHouse shows; return how many were lower."""
    statement = text(
        "UPDATE outbox.batch SET generation = shown.generation"
        " FROM unnest(CAST(:batch_ids AS uuid[]), CAST(:numbers AS integer[])) AS shown (batch_id, generation)"
        " WHERE batch.batch_id = shown.batch_id AND batch.generation < shown.generation"
    )
    return connection.execute(statement, {"batch_ids": list(shown), "numbers": list(shown.values())}).rowcount


def raise_attempts(connection: Connection, fenced: Mapping[UUID, int]) -> int:
    """Raise each batch's attempt to what ClickHouse has on record; return how many were lower."""
    statement = text(
        "UPDATE outbox.batch SET attempt = fenced.attempt"
        " FROM unnest(CAST(:batch_ids AS uuid[]), CAST(:numbers AS integer[])) AS fenced (batch_id, attempt)"
        " WHERE batch.batch_id = fenced.batch_id AND batch.attempt < fenced.attempt"
    )
    return connection.execute(statement, {"batch_ids": list(fenced), "numbers": list(fenced.values())}).rowcount


def make_open_look_first(connection: Connection) -> int:
    """Count the old instance's first attempt on each open batch, so that the next one looks before it sends."""
    statement = update(batch).where(batch.c.status != BatchStatus.PROCESSED, batch.c.attempt == 0).values(attempt=1)
    return connection.execute(statement).rowcount


def highest_position(connection: Connection) -> int:
    """Return the position beyond which no event stands here; a restore may leave the sequence below its events."""
    highest_event = select(func.coalesce(func.max(event.c.position), 0)).scalar_subquery()
    return max(cut.read_last_drawn(connection), connection.scalar(select(highest_event)) or 0)


def set_sequence(connection: Connection, position: int) -> None:
    """Let the next position be drawn above *position*, which must be SEQUENCE_MARGIN above all that are in use.

    Takes effect at once and survives a rollback, which costs positions and nothing else.
    """
    connection.execute(text("SELECT outbox.advance_positions(:position)"), {"position": position})


def adopt_cluster(connection: Connection, *, floor: int) -> None:
    """Write this cluster's identity and the adoption's number into the ledger: from the commit on, batches are cut."""
    connection.execute(query("adopt_cluster"), {"floor": floor})
