"""Keep a lease alive while its process works.

A thread with its own short transactions, so that a long insert or a sleeping retry does not let the lease run out.
When a renewal finds the lease gone it stops and `require_held` raises from then on. While PostgreSQL does not answer it
keeps trying: whether the lease is lost is the ledger's to say.
"""

import threading
from datetime import timedelta
from types import TracebackType
from typing import Self

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from outbox_pipeline.batches import Lease
from outbox_pipeline.errors import LeaseLostError, OutboxError, sentence_of
from outbox_pipeline.logs import log
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import renew_lease


class Heartbeat:
    """Renews one lease three times in its length until stopped."""

    def __init__(self, engine: Engine, lease: Lease, *, lasting: timedelta) -> None:
        """Prepare the thread; `start` runs it."""
        self._engine = engine
        self._lease = lease
        self._lasting = lasting
        self._stopped = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{lease.batch_id}", daemon=True)

    def start(self) -> Self:
        """Begin renewing."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop renewing and wait for the renewal under way."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def require_held(self) -> None:
        """Raise LeaseLostError when a renewal found the lease gone."""
        if self._is_lost:
            raise LeaseLostError(self._lease.batch_id, self._lease.attempt)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _beat(self) -> None:
        while not self._stopped.wait(self._lasting.total_seconds() / 3):
            try:
                with ledger_transaction(self._engine) as connection:
                    is_held = renew_lease(connection, self._lease, lasting=self._lasting)
            except (OutboxError, SQLAlchemyError) as error:
                log().warning("lease_not_renewed", batch_id=str(self._lease.batch_id), error=sentence_of(error))
                continue
            if not is_held:
                self._is_lost = True
                return
