"""Start an attempt on a batch, and end one that failed.

An attempt is requested first (its number drawn, `request_due`) and started by the run that was asked for; a run that
was not (a re-execution, a replay) takes the batch over when no run holds it.
"""

import os
import random
import socket
from collections.abc import Collection
from datetime import timedelta
from functools import cache
from uuid import UUID

from sqlalchemy import Engine

from outbox_pipeline.batches import Batch, BatchRequest, BatchStatus, Lease
from outbox_pipeline.errors import (
    BatchDataError,
    ConfigurationError,
    InDoubtError,
    LeaseLostError,
    OutboxError,
    ProofError,
    TransientError,
    ViewError,
    WitnessError,
    sentence_of,
)
from outbox_pipeline.ids import uuid7
from outbox_pipeline.logs import log
from outbox_pipeline.postgres import leases
from outbox_pipeline.postgres.conditions import require_own_cluster
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.owner import claimed, require_owner
from outbox_pipeline.relay.points import Point, announce
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores


@cache
def _holder_of(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}:{uuid7()}"


def holder() -> str:
    """Return the name under which this process holds leases: made after a fork, so no two processes share one."""
    return _holder_of(os.getpid())


def request_batches(engine: Engine, settings: Settings, *, limit: int) -> list[BatchRequest]:
    """Draw the next attempt of up to *limit* due batches, oldest first.

    Raises LedgerError when the ledger belongs to another cluster.
    """
    with ledger_transaction(engine, lock_timeout_seconds=settings.lock_timeout_seconds) as connection:
        require_own_cluster(connection)
        requests = leases.request_due(
            connection,
            limit=limit,
            request_seconds=settings.request_seconds,
            max_attempts=settings.max_attempts,
        )
    if requests:
        announce(Point.REQUESTED)
    return requests


def latest_attempts(engine: Engine, batch_ids: Collection[UUID]) -> dict[UUID, tuple[int, str | None]]:
    """Return each batch's latest attempt and the run that has it, None while no run has taken it up."""
    with ledger_transaction(engine) as connection:
        return leases.read_attempts(connection, batch_ids)


def start_requested(stores: Stores, batch_id: UUID, attempt: int, *, run_id: str | None = None) -> Delivery:
    """Take the lease of a requested attempt.

    Raises LeaseLostError when the ledger has gone on without it, LedgerError when it belongs to another cluster,
    ConfigurationError when the event log is another outbox's or a newer release has frozen the batch.
    """
    lease = Lease(batch_id, attempt, holder())
    claims = claimed(stores)
    with ledger_transaction(stores.engine) as connection:
        identity = require_own_cluster(connection)
        require_owner(stores.client.table, claims, identity.ledger_id)
        if not leases.take_lease(connection, lease, lasting=stores.settings.lease, run_id=run_id):
            found = leases.read_batch(connection, batch_id)
            _require_known(found)
            raise LeaseLostError(batch_id, attempt, reason=f"it is {found.status} at attempt {found.attempt}")
    announce(Point.LEASED)
    return Delivery(stores, lease, identity)


def start_unrequested(stores: Stores, batch_id: UUID, *, run_id: str | None = None) -> Delivery:
    """Take a batch that no run holds over under a new attempt.

    Raises LeaseLostError while another run holds it, BatchDataError when its events were pruned, LedgerError when the
    ledger belongs to another cluster, ConfigurationError when the event log is another outbox's or a newer release has
    frozen the batch.
    """
    claims = claimed(stores)
    with ledger_transaction(stores.engine) as connection:
        identity = require_own_cluster(connection)
        require_owner(stores.client.table, claims, identity.ledger_id)
        lease = leases.take_over(connection, batch_id, holder(), lasting=stores.settings.lease, run_id=run_id)
        if lease is None:
            found = leases.read_batch(connection, batch_id)
            _require_known(found)
            if found.pruned_at is not None:
                raise BatchDataError(pruned_sentence(found))
            raise LeaseLostError(batch_id, found.attempt, reason="another run is delivering it now")
    announce(Point.LEASED)
    return Delivery(stores, lease, identity)


def _require_known(batch: Batch) -> None:
    if batch.proof is not None:
        batch.proof.require_known()


def pruned_sentence(batch: Batch) -> str:
    """Say why a batch that was split, or whose events were pruned, is not sent again, and what is left to do."""
    if batch.status == BatchStatus.SPLIT:
        return f"Batch {batch.batch_id} was split: its events are delivered in smaller batches."
    return (
        f"The events of batch {batch.batch_id} were pruned from PostgreSQL at {batch.pruned_at:%Y-%m-%d %H:%M} UTC: it "
        "can be proved but not sent again. Restore its rows in ClickHouse from a backup."
    )


def end_failed(delivery: Delivery, error: BaseException) -> BatchStatus | None:
    """Write the failure to the ledger, stop the heartbeat and set when the next attempt is due.

    Never raises: a failure that the ledger does not take is logged, and the lease runs out. Returns the batch's new
    status: failed, parked, or None when the lease was lost before or nothing was written.
    """
    delivery.close()
    lease = delivery.lease
    ids = {"batch_id": str(lease.batch_id), "attempt": lease.attempt}
    try:
        status = _fail(delivery, error)
    except OutboxError as refused:
        log().warning("failure_not_written", **ids, error=sentence_of(error), refused=sentence_of(refused))
        return None
    name = "batch_parked" if status == BatchStatus.PARKED else "batch_failed"
    log().warning(name, **ids, error=sentence_of(error))
    return status


def _fail(delivery: Delivery, error: BaseException) -> BatchStatus | None:
    lease, settings = delivery.lease, delivery.stores.settings
    with ledger_transaction(delivery.stores.engine) as connection:
        found = leases.read_batch(connection, lease.batch_id)
        if delivery.unnoted_answer is not None:
            leases.note_answer(connection, lease, delivery.unnoted_answer)
        return leases.fail_attempt(
            connection,
            lease,
            error=sentence_of(error),
            kind=error_kind(error),
            wait=backoff(found.failures + found.transient_failures, settings),
            max_attempts=settings.max_attempts,
            is_final=isinstance(error, ViewError) and error.is_final,
            lacked_memory=delivery.lacked_memory,
        )


def backoff(failures: int, settings: Settings) -> timedelta:
    """Return how long to wait after this many earlier failures: doubling, bounded, with up to a quarter of jitter."""
    seconds = min(settings.retry_base_seconds * 2 ** min(failures, 30), settings.retry_max_seconds)
    return timedelta(seconds=seconds * random.uniform(0.75, 1.0))


def error_kind(error: BaseException) -> str:
    """Return the word the ledger keeps for a kind of failure."""
    kinds = {
        TransientError: "transient",
        InDoubtError: "in_doubt",
        ConfigurationError: "configuration",
        BatchDataError: "data",
        ProofError: "proof",
        LeaseLostError: "silence",
        WitnessError: "witness",
        ViewError: "view",
    }
    return next((word for kind, word in kinds.items() if isinstance(error, kind)), "unexpected")
