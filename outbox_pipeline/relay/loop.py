"""Relay without Dagster: cut and deliver in this process, once or until nothing is left.

For cron, debugging and benchmarks; the same procedures that Dagster's ops call. Several relays and Dagster runs may
work on one outbox at once, they take different batches.
"""

from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from threading import BoundedSemaphore
from typing import Any

from outbox_pipeline.errors import DefectError, OutboxError, WitnessError, sentence_of
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.known_bytes import require_known_bytes
from outbox_pipeline.relay.lost_log import require_log
from outbox_pipeline.relay.owner import claim_table
from outbox_pipeline.relay.results import Marked
from outbox_pipeline.relay.split import Split
from outbox_pipeline.relay.witness import require_own_log
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores

#: Most events and bytes of context in a batch here. Another batch costs no process, so smaller ones than Dagster's are
#: as fast, and those in memory are small.
_MAX_EVENTS = 200_000
_MAX_BYTES = 64_000_000

#: Batches under way at once, each in a thread of its own: while one waits for ClickHouse others are cut and read.
_AT_ONCE = 3

#: Room for the events of so many batches in this process: the third is encoded by then, which is half as much.
_room = BoundedSemaphore(2)


@dataclass(frozen=True)
class RelayResult:
    """What a relay did."""

    batch_count: int = 0
    delivered_count: int = 0
    quarantined_count: int = 0
    failures: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    def plus(self, outcome: "BatchResult") -> "RelayResult":
        """Return this result with one more batch, delivered, split or failed."""
        if isinstance(outcome, OutboxError):
            return replace(self, failures=(*self.failures, str(outcome)))
        if isinstance(outcome, Split):
            return replace(self, splits=(*self.splits, outcome.sentence))
        return replace(
            self,
            batch_count=self.batch_count + 1,
            delivered_count=self.delivered_count + outcome.accepted_count,
            quarantined_count=self.quarantined_count + outcome.quarantined_count,
        )


#: What became of a batch: what was marked, what was given back, or why it failed.
BatchResult = Marked | Split | OutboxError


def relay(
    stores: Stores, *, until_empty: bool = False, on_progress: Callable[[RelayResult], None] | None = None
) -> RelayResult:
    """Cut what is pending and deliver what is due; with *until_empty* again until neither is left.

    Then several batches are under way at once. They are in threads, so a caller that is interrupted gets out when they
    are delivered. A failed batch is written to the ledger with its error and does not stop the others; it is not tried
    again in this call, its backoff decides. Raises what keeps everything from working: no schema, no table or another
    outbox's, a ledger that stopped, a ClickHouse that alters known bytes.
    """
    require_ready(stores)
    claim_table(stores)
    require_known_bytes(stores)
    result, settings = RelayResult(), _relay_settings(stores.settings, until_empty=until_empty)
    deliver = _deliver_until_empty if until_empty else _deliver_one
    with closing(deliver(stores, settings)) as outcomes:
        for outcome in outcomes:
            result = result.plus(outcome)
            if on_progress is not None:
                on_progress(result)
    return result


def _relay_settings(settings: Settings, *, until_empty: bool) -> Settings:
    limits = {
        "batch_max_events": min(settings.batch_max_events, _MAX_EVENTS),
        "batch_max_bytes": min(settings.batch_max_bytes, _MAX_BYTES),
    }
    return settings.model_copy(update={**limits, **({"linger_seconds": 0} if until_empty else {})})


def _deliver_one(stores: Stores, settings: Settings) -> Generator[BatchResult]:
    with ThreadPoolExecutor(1, thread_name_prefix="deliver") as worker:
        outcome = worker.submit(_deliver_next, stores, settings).result()
    if outcome is not None:
        yield outcome


def _deliver_until_empty(stores: Stores, settings: Settings) -> Generator[BatchResult]:
    running: set[Future[BatchResult | None]] = set()
    # Looks for a batch take turns: they would wait for each other at the ledger, and most would find nothing.
    look: Future[bool] | None = None
    is_more = True
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="deliver") as workers:
        while is_more or running:
            if is_more and look is None and len(running) < _AT_ONCE:
                is_more, look = False, Future()
                running.add(workers.submit(_deliver_next, stores, settings, look.set_result))
            awaited: list[Future[Any]] = [*running, *([] if look is None else [look])]
            wait(awaited, return_when=FIRST_COMPLETED)
            if look is not None and look.done():
                is_more, look = is_more or look.result(), None
            done = {future for future in running if future.done()}
            running -= done
            outcomes = [outcome for future in done if (outcome := future.result()) is not None]
            # A delivery took a while: what was committed meanwhile is looked for once more after the last one.
            is_more = is_more or bool(outcomes)
            yield from outcomes


def _deliver_next(
    stores: Stores, settings: Settings, tell_found: Callable[[bool], None] = lambda _: None
) -> BatchResult | None:
    delivery = None
    try:
        delivery = _next_delivery(stores, settings)
    finally:
        tell_found(delivery is not None)
    if delivery is None:
        return None
    try:
        return deliver(delivery)
    except OutboxError as error:
        end_failed(delivery, error)
        if isinstance(error, WitnessError):
            raise
        return error


def _next_delivery(stores: Stores, settings: Settings) -> Delivery | None:
    while True:
        cut = cut_batches(stores.engine, settings, limit=1)
        for request in request_batches(stores.engine, stores.settings, limit=1):
            return start_requested(stores, request.batch_id, request.attempt)
        if not cut.batches:
            return None
        # Another process was asked for the batch that this one cut.


def deliver(delivery: Delivery, *, reload: bool = False) -> Marked | Split:
    """Take one batch through all four steps, or split it; the caller ends the attempt when this raises.

    Raises DefectError for what no store has translated, so that a traceback quotes no event.
    """
    try:
        with _room:
            delivery.prepare()
        return delivery.finish(reload=reload)
    except OutboxError:
        raise
    except Exception as error:  # noqa: BLE001 - raised on, in words that may be shown
        raise DefectError(sentence_of(error)).with_traceback(error.__traceback__) from None
    finally:
        delivery.close()


def require_ready(stores: Stores) -> None:
    """Raise ConfigurationError unless both sides have the schema this code needs and the table is no other outbox's.

    Raises WitnessError when ClickHouse knows of deliveries that this ledger does not.
    """
    with ledger_transaction(stores.engine) as connection:
        check_version(connection)
    require_log(stores.engine, stores.client)
    require_own_log(stores)
