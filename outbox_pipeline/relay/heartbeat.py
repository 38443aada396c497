"""Keep a lease alive while its process works and gets on.

A thread with its own short transactions, so that a long insert or a sleeping retry does not let the lease run out.
When a renewal finds the lease gone it stops and `require_held` raises from then on. While PostgreSQL does not answer it
keeps trying: whether the lease is lost is the ledger's to say. Invariant: a step that shows no sign of life within its
limit keeps its batch no longer than a lease, whatever it hangs on; should it come back, `require_held` raises.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from outbox_pipeline.batches import Lease
from outbox_pipeline.errors import LeaseLostError, OutboxError, sentence_of
from outbox_pipeline.limits import StepLimits
from outbox_pipeline.logs import log
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import note_error, renew_lease

#: What a delivery does between two waits for a store.
_WORKING = "busy in its own process"


@dataclass(frozen=True)
class _Step:
    """What a delivery does, since when, and for how long it may."""

    doing: str
    since: float
    seconds: float

    def left_seconds(self) -> float:
        return self.since + self.seconds - time.monotonic()


class Heartbeat:
    """Renews one lease three times in its length until stopped, or until a step takes too long."""

    def __init__(self, engine: Engine, lease: Lease, *, lasting: timedelta, limits: StepLimits) -> None:
        """Prepare the thread; `start` runs it."""
        self._engine = engine
        self._lease = lease
        self._lasting = lasting
        self._limits = limits
        # Not an Event, whose lock an interrupt in `set` would leave held: the next `set` would wait for ever.
        self._stops: SimpleQueue[None] = SimpleQueue()
        self._lost: LeaseLostError | None = None
        self._step = _Step(_WORKING, time.monotonic(), limits.working)
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{lease.batch_id}", daemon=True)

    def start(self) -> Self:
        """Begin renewing."""
        try:
            self._thread.start()
        except BaseException:
            # Terminate of Dagster raises at any line, in a process that a worker keeps for the next runs.
            self.order_stop()
            raise
        return self

    def stop(self) -> None:
        """Stop renewing and wait for the renewal under way."""
        self.order_stop()
        if self._thread.is_alive():
            self._thread.join()

    def order_stop(self) -> None:
        """Let no renewal begin from now on; waits for nothing."""
        self._stops.put(None)

    def require_held(self) -> None:
        """Raise LeaseLostError when a renewal found the lease gone, or when it was given up over a long step."""
        if self._lost is not None:
            raise self._lost

    def get_on(self) -> None:
        """Say that the delivery is alive."""
        self._step = _Step(_WORKING, time.monotonic(), self._limits.working)

    @contextmanager
    def during(self, doing: str, seconds: float) -> Iterator[None]:
        """Keep the lease while the block waits for something else, for *seconds* at most."""
        self._step = _Step(doing, time.monotonic(), seconds)
        try:
            yield
        finally:
            self.get_on()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _beat(self) -> None:
        while not self._is_stopped_within(self._pause()):
            step = self._step
            if step.left_seconds() <= 0:
                return self._give_up(step)
            try:
                with self._ledger() as connection:
                    is_held = renew_lease(connection, self._lease, lasting=self._lasting)
            except (OutboxError, SQLAlchemyError) as error:
                log().warning("lease_not_renewed", batch_id=str(self._lease.batch_id), error=sentence_of(error))
                continue
            if not is_held:
                self._lost = LeaseLostError(self._lease.batch_id, self._lease.attempt)
                return None
        return None

    def _is_stopped_within(self, seconds: float) -> bool:
        try:
            self._stops.get(timeout=seconds)
        except Empty:
            return False
        return True

    def _pause(self) -> float:
        return min(self._lasting.total_seconds() / 3, max(0.0, self._step.left_seconds()))

    def _ledger(self) -> AbstractContextManager[Connection]:
        # A renewal that takes longer than the lease comes too late; another one may not.
        seconds = min(self._limits.statement, self._lasting.total_seconds())
        return ledger_transaction(self._engine, statement_timeout_seconds=seconds)

    def _give_up(self, step: _Step) -> None:
        reason = f"it was {step.doing} for {step.seconds:.0f} s without an end, so its lease is no longer renewed"
        self._lost = LeaseLostError(self._lease.batch_id, self._lease.attempt, reason=reason)
        log().warning("lease_given_up", batch_id=str(self._lease.batch_id), error=sentence_of(self._lost))
        try:
            with self._ledger() as connection:
                said = f"Attempt {self._lease.attempt} went silent: {reason}."
                note_error(connection, self._lease, error=said, kind="silence")
        except (OutboxError, SQLAlchemyError) as error:
            log().warning("lease_not_renewed", batch_id=str(self._lease.batch_id), error=sentence_of(error))
