"""Relay without Dagster: cut and deliver in this process, once or until nothing is left.

For cron, debugging and benchmarks; the same procedures that Dagster's ops call. Several relays and Dagster runs may
work on one outbox at once, they take different batches.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from outbox_pipeline.clickhouse.table import check_table
from outbox_pipeline.errors import OutboxError
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.delivery import Delivery, Marked
from outbox_pipeline.relay.stores import Stores
from outbox_pipeline.settings import Settings

#: Most events and bytes of context in a batch here. Another batch costs no process, so smaller ones than Dagster's are
#: as fast, the next is read sooner, and those in memory are small.
_MOST_EVENTS = 120_000
_MOST_BYTES = 64_000_000

#: Batches read ahead of the one that is loaded. Cutting waits for PostgreSQL, so one is cut while another is read.
_AHEAD = 2


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

    While one batch is loaded, the next are cut, read and validated in threads. A failed batch is written to the ledger
    with its error and does not stop the others; it is not tried again in this call, its backoff decides. Raises what
    keeps everything from working: no schema, no table, a ledger that stopped.
    """
    require_ready(stores)
    result, settings = RelayResult(), _relay_settings(stores.settings, until_empty=until_empty)
    with closing(_prepared_batches(stores, settings, until_empty=until_empty)) as batches:
        for prepared in batches:
            result = _finished(prepared, result)
            if on_progress is not None:
                on_progress(result)
    return result


def _relay_settings(settings: Settings, *, until_empty: bool) -> Settings:
    limits = {
        "batch_max_events": min(settings.batch_max_events, _MOST_EVENTS),
        "batch_max_bytes": min(settings.batch_max_bytes, _MOST_BYTES),
    }
    return settings.model_copy(update={**limits, **({"linger_seconds": 0} if until_empty else {})})


@dataclass(frozen=True)
class _Prepared:
    """A batch that is read and frozen, or what kept it from that."""

    delivery: Delivery
    error: OutboxError | None = None


def _prepared_batches(stores: Stores, settings: Settings, *, until_empty: bool) -> Generator[_Prepared]:
    """Yield batches ready to be loaded, some ahead of the caller; the caller ends each."""
    prepared = _prepare_next(stores, settings)
    if not until_empty:
        yield from filter(None, [prepared])
        return
    ahead: deque[Future[_Prepared | None]] = deque()
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="prepare") as readers:
        try:
            while prepared is not None:
                while len(ahead) < _AHEAD:
                    ahead.append(readers.submit(_prepare_next, stores, settings))
                yield prepared
                prepared = None
                while ahead and prepared is None:
                    prepared = ahead.popleft().result()
                if prepared is None:
                    # Nothing was left when they looked; the delivery took a while, so look again.
                    prepared = _prepare_next(stores, settings)
        finally:
            _let_go(ahead)


def _prepare_next(stores: Stores, settings: Settings) -> _Prepared | None:
    while True:
        cut = cut_batches(stores.engine, settings, most=1)
        for request in request_batches(stores.engine, stores.settings, most=1):
            return _prepare(start_requested(stores, request.batch_id, request.attempt))
        if not cut.batches:
            return None
        # Another process was asked for the batch that this one cut.


def _prepare(delivery: Delivery) -> _Prepared:
    try:
        delivery.prepare()
    except OutboxError as error:
        return _Prepared(delivery, error)
    except BaseException:
        delivery.close()
        raise
    return _Prepared(delivery)


def _finished(prepared: _Prepared, result: RelayResult) -> RelayResult:
    delivery = prepared.delivery
    try:
        if prepared.error is not None:
            raise prepared.error
        return result.plus(delivery.finish())
    except OutboxError as error:
        end_failed(delivery, error)
        return result.plus_failure(error)
    finally:
        delivery.close()


def _let_go(ahead: Iterable[Future[_Prepared | None]]) -> None:
    # The caller stopped in the middle: the batches read ahead keep their leases no longer than these last.
    for future in ahead:
        if future.exception() is None and (prepared := future.result()) is not None:
            prepared.delivery.close()


def deliver(delivery: Delivery, *, reload: bool = False) -> Marked:
    """Take one batch through all four steps; the caller ends the attempt when this raises."""
    try:
        delivery.prepare()
        return delivery.finish(reload=reload)
    finally:
        delivery.close()


def require_ready(stores: Stores) -> None:
    """Raise ConfigurationError unless both sides have the schema this code needs."""
    with ledger_transaction(stores.engine) as connection:
        check_version(connection)
    check_table(stores.client)
