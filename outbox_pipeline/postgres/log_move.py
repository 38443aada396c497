"""What a move of the event log keeps in the ledger: how often it has begun, its locks, and when it exchanges tables.

Every attempt on a batch begins in a transaction that shares a lock of PostgreSQL's with all others (a trigger takes it,
`0014_log_move.sql`), and stands as a lease from its commit on. Invariant: who has the lock alone sees every attempt
that has begun, and none begins until it lets go; from the commit of `begin_exchange` to that of `end_exchange` none
begins either, also when the process has died. All locks are a transaction's, so a pooler may stand before PostgreSQL.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, func, not_, select, text, update

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.postgres.leases import is_over
from outbox_pipeline.postgres.tables import batch, log_move

#: "outboxlm", as in the trigger: shared where attempts begin, alone for the last pass of a move.
_ATTEMPTS_KEY = 0x6F7574626F786C6D
#: "outboxmv": one move of a ledger's log at a time.
_MOVE_KEY = 0x6F7574626F786D76


@dataclass(frozen=True)
class LogMove:
    """How many runs there were, and since when one exchanges the tables, None where none does."""

    run: int
    exchange_at: datetime | None


@dataclass(frozen=True)
class Attempted:
    """A batch of which an insert may have been sent, under any attempt up to its latest."""

    batch_id: UUID
    attempt: int
    status: BatchStatus

    @property
    def is_processed(self) -> bool:
        """Tell whether it is delivered."""
        return self.status == BatchStatus.PROCESSED

    @property
    def fence(self) -> int:
        """The lowest attempt that may still insert: the next one, or the one that was asked for and has not begun."""
        return self.attempt if self.status == BatchStatus.REQUESTED else self.attempt + 1


def may_move(connection: Connection) -> bool:
    """Tell whether this role may write what a move keeps."""
    return bool(connection.scalar(text("SELECT has_table_privilege('outbox.log_move', 'UPDATE')")))


def take_move(connection: Connection) -> bool:
    """Take the lock of the one move until the transaction ends; False when another process has it."""
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(_MOVE_KEY))))


def require_alive(connection: Connection) -> None:
    """Raise what the driver does when the session, and with it its locks, is gone."""
    connection.execute(text("SELECT 1"))


def read_move(connection: Connection) -> LogMove:
    """Return what the ledger keeps of moves. Changes nothing."""
    return LogMove(*connection.execute(select(log_move.c.run, log_move.c.exchange_at)).one())


def begin_run(connection: Connection, *, above: int) -> LogMove:
    """Draw the number of a run, which is above all before it and above *above*."""
    run = func.greatest(log_move.c.run, above) + 1
    return LogMove(
        *connection.execute(update(log_move).values(run=run).returning(log_move.c.run, log_move.c.exchange_at)).one()
    )


def wait_alone(connection: Connection) -> None:
    """Wait until no transaction is open in which an attempt begins, and let none begin until this one ends."""
    connection.execute(select(func.pg_advisory_xact_lock(_ATTEMPTS_KEY)))


def begin_exchange(connection: Connection, run: int) -> bool:
    """Let no attempt begin from this transaction's commit on; False when a later run has begun."""
    statement = update(log_move).where(log_move.c.run == run).values(exchange_at=func.clock_timestamp())
    return connection.execute(statement).rowcount == 1


def end_exchange(connection: Connection, run: int) -> bool:
    """Let attempts begin again: it is known which table has which name. False when a later run has begun."""
    statement = update(log_move).where(log_move.c.run == run).values(exchange_at=None)
    return connection.execute(statement).rowcount == 1


def held_batches(connection: Connection) -> list[UUID]:
    """Return the batches on which an attempt is at work: their lease is held and not over."""
    statement = select(batch.c.batch_id).where(
        batch.c.status == BatchStatus.DELIVERING, not_(is_over(batch.c.lease_until))
    )
    return list(connection.scalars(statement))


def read_attempted(connection: Connection, *, after: UUID, limit: int) -> list[Attempted]:
    """Return up to *limit* batches of which an insert may ever have been sent and that are not pruned, by their id."""
    statement = _ATTEMPTED.where(batch.c.batch_id > after, batch.c.pruned_at.is_(None)).limit(limit)
    return [Attempted(row[0], row[1], BatchStatus(row[2])) for row in connection.execute(statement)]


def read_open(connection: Connection) -> list[Attempted]:
    """Return the batches of which an insert may have been sent and that are not processed."""
    return [
        Attempted(row[0], row[1], BatchStatus(row[2]))
        for row in connection.execute(_ATTEMPTED.where(batch.c.status != BatchStatus.PROCESSED))
    ]


_ATTEMPTED = (
    select(batch.c.batch_id, batch.c.attempt, batch.c.status).where(batch.c.attempt > 0).order_by(batch.c.batch_id)
)
