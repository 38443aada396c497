"""Relay without Dagster: cut and deliver in this process, once or until nothing is left.

For cron, debugging and benchmarks; the same procedures that Dagster's ops call. Several relays and Dagster runs may
work on one outbox at once, they take different batches.
"""

from collections.abc import Callable
from dataclasses import dataclass

from outbox_pipeline.clickhouse.table import check_table
from outbox_pipeline.errors import OutboxError
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.delivery import Delivery, Marked
from outbox_pipeline.relay.stores import Stores


@dataclass(frozen=True)
class RelayResult:
    """What a relay did."""

    batch_count: int = 0
    delivered_count: int = 0
    quarantined_count: int = 0
    failures: tuple[str, ...] = ()

    def plus(self, marked: Marked) -> "RelayResult":
        """Return this result with one more delivered batch."""
        return RelayResult(
            self.batch_count + 1,
            self.delivered_count + marked.accepted_count,
            self.quarantined_count + marked.quarantined_count,
            self.failures,
        )

    def plus_failure(self, error: OutboxError) -> "RelayResult":
        """Return this result with one more failed batch."""
        return RelayResult(self.batch_count, self.delivered_count, self.quarantined_count, (*self.failures, str(error)))


def relay(
    stores: Stores, *, until_empty: bool = False, on_progress: Callable[[RelayResult], None] | None = None
) -> RelayResult:
    """Cut what is pending and deliver what is due; with *until_empty* again until neither is left.

    A failed batch is written to the ledger with its error and does not stop the others; it is not tried again in this
    call, its backoff decides. Raises what keeps everything from working: no schema, no table, a ledger that stopped.
    """
    require_ready(stores)
    settings = stores.settings.model_copy(update={"linger_seconds": 0}) if until_empty else stores.settings
    result = RelayResult()
    while True:
        cut = cut_batches(stores.engine, settings, most=1)
        requests = request_batches(stores.engine, stores.settings, most=1)
        for request in requests:
            delivery = start_requested(stores, request.batch_id, request.attempt)
            try:
                result = result.plus(deliver(delivery))
            except OutboxError as error:
                end_failed(delivery, error)
                result = result.plus_failure(error)
            if on_progress is not None:
                on_progress(result)
        if not until_empty or not (cut.batches or requests):
            return result


def deliver(delivery: Delivery, *, reload: bool = False) -> Marked:
    """Take one batch through all four steps; the caller ends the attempt when this raises."""
    try:
        delivery.extract()
        delivery.validate()
        delivery.load(reload=reload)
        return delivery.mark()
    finally:
        delivery.close()


def require_ready(stores: Stores) -> None:
    """Raise ConfigurationError unless both sides have the schema this code needs."""
    with ledger_transaction(stores.engine) as connection:
        check_version(connection)
    check_table(stores.client)
