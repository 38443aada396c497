"""Statements that give a batch to one run at a time and write what that run reports.

Invariant: each write names batch, attempt and holder and touches nothing when they are not the current ones; the
caller then gets LeaseLostError. The database's clock decides what has expired, and a clock that was wrong for a moment
holds nothing up for longer than a lease: each end of one is written with how long it lasts at most.
"""

from collections.abc import Collection
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Update,
    and_,
    case,
    false,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.engine import RowMapping

from outbox_pipeline.batches import (
    LAST_POSITION,
    MEMORY_FAILURES,
    NEWER_PROOF,
    PASSING_KINDS,
    Batch,
    BatchRequest,
    BatchStatus,
    Lease,
    Proof,
)
from outbox_pipeline.counts import counted
from outbox_pipeline.errors import ConfigurationError, LeaseLostError, LedgerError
from outbox_pipeline.event_schema import PROOF_VERSION
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.tables import batch

#: Kinds of failure that a batch is not to blame for: a server's trouble, and a ledger that was set back.
_TROUBLE_KINDS = (*PASSING_KINDS, "witness")
#: How long they go on before they park a batch: an outage of a day drains by itself.
TROUBLE_LASTS = timedelta(hours=25)
#: How far the attempt that splits a batch is above all others: another instance of the ledger, which has the same batch
#: and draws numbers of its own, does not come near it. Metrics leave it out of what they count (metrics.sql).
SPLIT_ATTEMPTS = 1_000_000

_NOW = func.clock_timestamp()
_STATUS = case((batch.c.former_positions.is_not(None), BatchStatus.SPLIT), else_=batch.c.status).label("status")
_SHOWN = [_STATUS if name == "status" else getattr(batch.c, name) for name in Batch.__dataclass_fields__]
#: The batch is not frozen, or by a release that is not newer than this one.
IS_KNOWN = func.coalesce(batch.c.proof["version"].as_integer(), 1) <= PROOF_VERSION


def is_over(until: Column[Any]) -> ColumnElement[bool]:
    """Tell whether a lease or a wait with this end is over: past, or further ahead than it lasts at most.

    The latter was written while the clock was ahead, or before it was set back.
    """
    return or_(until <= _NOW, func.coalesce(until > _NOW + batch.c.lasting, false()))


def request_due(connection: Connection, *, limit: int, request_seconds: float, max_attempts: int) -> list[BatchRequest]:
    """Move up to *limit* due batches to requested under a new attempt each, oldest first.

    Due are: freshly cut, failed with the backoff over, requested or delivering with the lease expired. A batch whose
    silent attempts reach *max_attempts* is parked and not returned; a request that no run has taken up, and an attempt
    during which PostgreSQL was restarted, are counted as a server's trouble. A batch that a newer release has frozen is
    told so.
    """
    parameters = {
        "limit": limit,
        "request_seconds": request_seconds,
        "max_attempts": max_attempts,
        "proof_version": PROOF_VERSION,
        "newer_proof": NEWER_PROOF,
        "trouble_lasts": TROUBLE_LASTS,
        "memory_failures": MEMORY_FAILURES,
        "split_attempts": SPLIT_ATTEMPTS,
    }
    rows = connection.execute(query("request_due"), parameters).all()
    return [
        BatchRequest(row.batch_id, row.attempt, row.recorded_on, row.event_count)
        for row in sorted(rows, key=lambda row: row.cut_at)
        if row.status == BatchStatus.REQUESTED
    ]


def read_requested(connection: Connection, *, older_than_seconds: float) -> list[tuple[UUID, int, float]]:
    """Return batch, attempt and age in seconds of requests that no run has taken up yet. Changes nothing."""
    age = func.extract("epoch", _NOW - batch.c.requested_at)
    statement = select(batch.c.batch_id, batch.c.attempt, age).where(
        batch.c.status == BatchStatus.REQUESTED, age > older_than_seconds
    )
    return [(batch_id, attempt, float(seconds)) for batch_id, attempt, seconds in connection.execute(statement)]


def read_attempts(connection: Connection, batch_ids: Collection[UUID]) -> dict[UUID, tuple[int, str | None]]:
    """Return each batch's latest attempt and its run, None while no run has taken it up. Changes nothing."""
    run_id = case((batch.c.status != BatchStatus.REQUESTED, batch.c.run_id))
    statement = select(batch.c.batch_id, batch.c.attempt, run_id).where(batch.c.batch_id.in_(batch_ids))
    return {batch_id: (attempt, run_id) for batch_id, attempt, run_id in connection.execute(statement)}


def set_request_end(connection: Connection, batch_id: UUID, attempt: int, *, lasting: timedelta) -> None:
    """Let a request wait for *lasting* from now, or with zero give it up; nothing when a run has taken it up."""
    connection.execute(
        update(batch)
        .where(batch.c.batch_id == batch_id, batch.c.attempt == attempt, batch.c.status == BatchStatus.REQUESTED)
        .values(lease_until=_NOW + lasting, lasting=lasting)
    )


def take_lease(connection: Connection, lease: Lease, *, lasting: timedelta, run_id: str | None) -> bool:
    """Move a requested batch to delivering for exactly this attempt; False when it is not ours to take."""
    statement = (
        _leased(lease, lasting, run_id)
        .where(batch.c.batch_id == lease.batch_id, batch.c.attempt == lease.attempt, IS_KNOWN)
        .where(or_(batch.c.status == BatchStatus.REQUESTED, batch.c.holder == lease.holder))
    )
    return connection.execute(statement).rowcount == 1


def take_over(
    connection: Connection, batch_id: UUID, holder: str, *, lasting: timedelta, run_id: str | None
) -> Lease | None:
    """Move a batch that no run holds to delivering under a new attempt, whatever else its status is.

    For runs that were not requested: re-executions, replays, and the next step of a run whose steps are processes of
    their own. None while another run holds it, for a batch whose events were pruned, because there is nothing to send,
    and for one that a newer release has frozen.
    """
    is_same_run = false() if run_id is None else batch.c.run_id == run_id
    statement = (
        _leased(Lease(batch_id, 0, holder), lasting, run_id)
        .values(attempt=batch.c.attempt + case((_splits_next(), SPLIT_ATTEMPTS), else_=0) + 1)
        .where(batch.c.batch_id == batch_id, batch.c.pruned_at.is_(None), IS_KNOWN)
        .where(or_(batch.c.status != BatchStatus.DELIVERING, is_over(batch.c.lease_until), is_same_run))
        .returning(batch.c.attempt)
    )
    attempt = connection.scalar(statement)
    return None if attempt is None else Lease(batch_id, attempt, holder)


def renew_lease(connection: Connection, lease: Lease, *, lasting: timedelta) -> bool:
    """Move the lease's end to *lasting* from now; False when it is lost."""
    statement = update(batch).where(_is_held(lease)).values(lease_until=_NOW + lasting, lasting=lasting)
    return connection.execute(statement).rowcount == 1


def freeze(connection: Connection, lease: Lease, *, rejected: dict[int, list[str]], proof: Proof) -> None:
    """Store what will be sent and what ClickHouse must then show; once for a batch, before the first byte is sent."""
    statement = (
        update(batch)
        .where(_is_held(lease), batch.c.rejected.is_(None))
        .values(rejected={str(position): reasons for position, reasons in rejected.items()}, proof=proof.to_json())
    )
    _require_one(connection, lease, statement)


def refreeze(connection: Connection, lease: Lease, *, rejected: dict[int, list[str]], proof: Proof) -> int:
    """Store another rejected set and its proof under the next generation, and return that generation.

    What is sent has changed, so nothing of the generation before may count any more.
    """
    statement = (
        update(batch)
        .where(_is_held(lease), batch.c.rejected.is_not(None))
        .values(
            rejected={str(position): reasons for position, reasons in rejected.items()},
            proof=proof.to_json(),
            generation=batch.c.generation + 1,
            refused_generations=batch.c.refused_generations + 1,
        )
    )
    _require_one(connection, lease, statement)
    return connection.scalar(select(batch.c.generation).where(batch.c.batch_id == lease.batch_id)) or 0


def raise_generation(connection: Connection, lease: Lease) -> int:
    """Start the next generation of the batch's content and return its number."""
    statement = update(batch).where(_is_held(lease)).values(generation=batch.c.generation + 1)
    _require_one(connection, lease, statement)
    return connection.scalar(select(batch.c.generation).where(batch.c.batch_id == lease.batch_id)) or 0


def mark_processed(connection: Connection, lease: Lease) -> tuple[int, int, datetime]:
    """Move the batch to processed and its rejected events to quarantine; return accepted, quarantined now, and when.

    Call it only after ClickHouse has shown the stored proof. Raises LeaseLostError when the lease is not ours.
    """
    row = connection.execute(query("mark_processed"), _named(lease)).one_or_none()
    if row is None:
        return _marked_before(connection, lease)
    if row.held_count != row.quarantined_count:
        raise LedgerError(
            f"Batch {lease.batch_id} rejected {counted(row.held_count, 'event')} but outbox.event holds only "
            f"{row.quarantined_count} of them: rows were deleted by hand. Nothing was marked; restore them."
        )
    return row.accepted_count, row.quarantined_count, row.processed_at


def _marked_before(connection: Connection, lease: Lease) -> tuple[int, int, datetime]:
    # The answer to this attempt's own commit may have been lost: then it is done, and no other run can have done it.
    found = read_batch(connection, lease.batch_id)
    if (found.status, found.attempt) != (BatchStatus.PROCESSED, lease.attempt) or found.processed_at is None:
        raise _lost(connection, lease)
    return found.accepted_count or 0, found.rejected_count or 0, found.processed_at


def note_answer(connection: Connection, lease: Lease, generation: int | None) -> None:
    """Keep that ClickHouse answered the insert of *generation* with an error, or with None that nothing is owed for it.

    Another sending that a resume had allowed is used up by it.
    """
    statement = update(batch).where(_is_held(lease)).values(answered_generation=generation, may_resend=False)
    _require_one(connection, lease, statement)


def fail_attempt(
    connection: Connection,
    lease: Lease,
    *,
    error: str,
    kind: str,
    wait: timedelta,
    max_attempts: int,
    is_final: bool = False,
    lacked_memory: bool | None = None,
) -> BatchStatus | None:
    """End the attempt: failed until *wait* is over, or parked at the limit, or at once where it *is_final*.

    None when the lease was lost already.

    Failures by a server's trouble are counted apart: as many of them park a batch only when the first was longer ago
    than TROUBLE_LASTS. *lacked_memory* tells whether the attempt's insert failed for ClickHouse's memory, None when it
    sent none.
    """
    is_trouble = kind in _TROUBLE_KINDS
    failures = batch.c.failures + (0 if is_trouble else 1)
    transient_failures = batch.c.transient_failures + (1 if is_trouble else 0)
    is_enough = or_(literal(is_final), failures >= max_attempts)
    changes: dict[str, Any] = {}
    if is_trouble:
        # A beginning in the future was written under another clock.
        since = func.least(case((batch.c.transient_failures > 0, batch.c.trouble_since)), _NOW)
        is_enough = or_(is_enough, and_(transient_failures >= max_attempts, since <= _NOW - TROUBLE_LASTS))
        changes["trouble_since"] = since
    if lacked_memory is not None:
        changes["memory_failures"] = batch.c.memory_failures + 1 if lacked_memory else 0
    statement = (
        update(batch)
        .where(_is_held(lease))
        .values(
            status=case((is_enough, BatchStatus.PARKED), else_=BatchStatus.FAILED),
            failures=failures,
            transient_failures=transient_failures,
            holder=None,
            lease_until=None,
            next_attempt_at=_NOW + wait,
            lasting=wait,
            failed_at=_NOW,
            last_error=error,
            last_error_kind=kind,
            **changes,
        )
        .returning(batch.c.status)
    )
    status = connection.scalar(statement)
    return None if status is None else BatchStatus(status)


def note_error(connection: Connection, lease: Lease, *, error: str, kind: str) -> None:
    """Keep the latest error visible while the run goes on retrying; changes nothing else, not even when lost."""
    connection.execute(update(batch).where(_is_held(lease)).values(last_error=error, last_error_kind=kind))


def resume_parked(connection: Connection, batch_id: UUID | None = None) -> list[Batch]:
    """Move parked batches (or the one named) to failed and due at once; return them, oldest events first.

    One whose insert was answered with an error may be sent once more.
    """
    may_resend = batch.c.answered_generation.is_not(None)
    due_now = {"next_attempt_at": _NOW, "lasting": timedelta(0)}
    statement = (
        update(batch)
        .where(batch.c.status == BatchStatus.PARKED)
        .values(
            status=BatchStatus.FAILED,
            failures=0,
            transient_failures=0,
            holder=None,
            may_resend=may_resend,
            **due_now,
        )
    )
    if batch_id is not None:
        statement = statement.where(batch.c.batch_id == batch_id)
    resumed = [_as_batch(row) for row in connection.execute(statement.returning(*_SHOWN)).mappings()]
    return sorted(resumed, key=lambda one: (one.oldest_recorded_at, one.batch_id))


def read_batch(connection: Connection, batch_id: UUID) -> Batch:
    """Return the ledger's row of a batch. Raises ConfigurationError when there is none."""
    found = find_batch(connection, batch_id)
    if found is None:
        raise ConfigurationError(f"The ledger knows no batch {batch_id}: 'outbox trace' names the batch of an event.")
    return found


def find_batch(connection: Connection, batch_id: UUID) -> Batch | None:
    """Return the ledger's row of a batch, None when there is none."""
    row = connection.execute(select(*_SHOWN).where(batch.c.batch_id == batch_id)).mappings().one_or_none()
    return None if row is None else _as_batch(row)


def read_batches(connection: Connection, where: ColumnElement[bool], *, limit: int | None = None) -> list[Batch]:
    """Return (*limit* of) the ledger's rows that satisfy a condition on the batch table, in the order they were cut."""
    rows = connection.execute(select(*_SHOWN).where(where).order_by(batch.c.cut_at).limit(limit)).mappings()
    return [_as_batch(row) for row in rows]


def count_accepted(connection: Connection, first_day: date, last_day: date) -> int:
    """Return how many events of the UTC days from one to another, both included, are processed."""
    statement = select(func.coalesce(func.sum(batch.c.accepted_count), 0)).where(
        batch.c.recorded_on.between(first_day, last_day), batch.c.status == BatchStatus.PROCESSED
    )
    return connection.scalar(statement) or 0


def _as_batch(row: RowMapping) -> Batch:
    values = dict(row)
    values["status"] = BatchStatus(values["status"])
    if values["rejected"] is not None:
        values["rejected"] = {int(position): reasons for position, reasons in values["rejected"].items()}
    if values["proof"] is not None:
        values["proof"] = Proof.from_json(values["proof"])
    stretches = values["foreign_positions"]
    values["foreign_positions"] = tuple((one.lower, one.upper or LAST_POSITION) for one in stretches)
    return Batch(**values)


def _splits_next() -> ColumnElement[bool]:
    # As in request_due.sql.
    return and_(
        batch.c.memory_failures >= MEMORY_FAILURES,
        batch.c.processed_at.is_(None),
        batch.c.attempt < SPLIT_ATTEMPTS,
    )


def _leased(lease: Lease, lasting: timedelta, run_id: str | None) -> Update:
    return update(batch).values(
        status=BatchStatus.DELIVERING,
        holder=lease.holder,
        lease_until=_NOW + lasting,
        lasting=lasting,
        next_attempt_at=None,
        run_id=run_id,
        started_at=_NOW,
    )


def _is_held(lease: Lease) -> ColumnElement[bool]:
    return and_(
        batch.c.batch_id == lease.batch_id,
        batch.c.attempt == lease.attempt,
        batch.c.holder == lease.holder,
        batch.c.status == BatchStatus.DELIVERING,
    )


def _named(lease: Lease) -> dict[str, object]:
    return {"batch_id": lease.batch_id, "attempt": lease.attempt, "holder": lease.holder}


def _require_one(connection: Connection, lease: Lease, statement: Update) -> None:
    if connection.execute(statement).rowcount != 1:
        raise _lost(connection, lease)


def _lost(connection: Connection, lease: Lease) -> LeaseLostError:
    row = connection.execute(
        select(batch.c.attempt, batch.c.status, batch.c.holder).where(batch.c.batch_id == lease.batch_id)
    ).one_or_none()
    reason = "the batch is gone" if row is None else f"the ledger is at attempt {row.attempt}, {row.status}"
    return LeaseLostError(lease.batch_id, lease.attempt, reason=reason)
