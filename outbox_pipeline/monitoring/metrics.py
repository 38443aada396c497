"""The outbox as Prometheus metrics, read from the ledger at each scrape.

The ledger is the only source, so every server that exposes it shows the same and no restart forgets anything.
Invariant: a scrape is one bounded transaction that changes nothing, and it always answers: `outbox_up` is 0 when the
ledger cannot be read. Labels have a closed set of values, and nothing of an event's content is shown.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Metric, make_wsgi_app, start_http_server
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import SQLAlchemyError

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.errors import ConfigurationError, OutboxError, sentence_of
from outbox_pipeline.logs import log
from outbox_pipeline.monitoring.healthz import with_healthz
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.overview import read_metrics
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.settings import Settings, load_settings

#: Pending events are counted one by one up to here; above, the positions that may hold one are.
PENDING_LIMIT = 100_000
#: What is shown of the last hour's batches: the median, nearly all, the largest.
QUANTILES = (0.5, 0.95, 1.0)

#: Prometheus gives a scrape up after ten seconds; the answer that it failed must come before.
_STATEMENT_SECONDS = 4

_Message = MutableMapping[str, Any]
AsgiApp = Callable[
    [_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]
]

#: One number each: metric, column of `metrics.sql`, meaning. A number that is not known is left out.
_GAUGES = (
    ("outbox_pending_events", "pending", "Committed and in no batch; above 100,000 an upper bound."),
    ("outbox_in_flight_events", "in_flight", "In a batch that is cut, requested, delivering or failed."),
    ("outbox_parked_events", "parked", "In a batch that needs a person."),
    ("outbox_quarantined_events", "quarantined", "Refused by validation and held."),
    (
        "outbox_lag_seconds",
        "lag_seconds",
        "Age of the oldest undelivered event, or how far ahead one was recorded if that is more; 0 without any.",
    ),
    ("outbox_future_events", "future", "Undelivered events recorded in the future; of a batch its oldest counts."),
    ("outbox_future_seconds", "future_seconds", "How far ahead the farthest of them was recorded; 0 without any."),
    ("outbox_gaps", "gaps", "Sets of positions that a cut passed over and that may still be filled."),
    ("outbox_oldest_gap_seconds", "oldest_gap_seconds", "How long the oldest gap has been open; 0 without any."),
    (
        "outbox_last_processed_timestamp_seconds",
        "last_processed_at",
        "When a batch was last marked processed; absent when none ever was.",
    ),
    (
        "outbox_oldest_event_timestamp_seconds",
        "oldest_event_at",
        "When the oldest event that PostgreSQL still holds was recorded; absent when it holds none.",
    ),
    ("outbox_last_hour_batches", "recent_batches", "Batches marked processed in the last hour."),
    ("outbox_last_hour_events", "recent_events", "Events in the batches marked processed in the last hour."),
    (
        "outbox_last_hour_repeated_batches",
        "recent_repeated",
        "Batches of the last hour that took more than one attempt; a batch sent again is one too.",
    ),
)
_COUNTERS = (
    ("outbox_processed_events", "processed_total", "Events delivered and proved, of the batches the ledger holds."),
    ("outbox_processed_batches", "batches_total", "Batches delivered and proved, of those the ledger holds."),
    ("outbox_split_batches", "split_total", "Batches split because ClickHouse lacked the memory for them."),
    ("outbox_attempts", "attempts_total", "Attempts drawn to deliver a batch, whatever became of them."),
)
_BY_LABEL = (
    ("outbox_open_batches", "status", "open_batches", "Batches that are not processed, by status."),
    (
        "outbox_failed_attempts",
        "kind",
        "failed_attempts",
        "Attempts that failed since the last success, of open batches by the kind of their last error.",
    ),
)
#: Each open status is shown at all times, so that a graph does not begin with the first trouble.
_OPEN = [str(status) for status in BatchStatus if status not in (BatchStatus.PROCESSED, BatchStatus.SPLIT)]
_BY_QUANTILE = (
    ("outbox_last_hour_batch_events", "recent_sizes", "Events in a batch of the last hour."),
    ("outbox_last_hour_delivery_seconds", "recent_seconds", "From taking a batch to marking it, of the last hour."),
)


class LedgerCollector(Collector):
    """Reads the ledger whenever its registry is asked for metrics."""

    def __init__(self, engine: Engine) -> None:
        """Connect nowhere yet."""
        self.engine = engine
        self.problem: str | None = None

    def describe(self) -> Iterable[Metric]:
        """Name no metric, so that registering one does not read the ledger."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what the ledger says, or only `outbox_up 0` and keep why in `problem`."""
        started = time.monotonic()
        try:
            row = self._read()
        except (OutboxError, SQLAlchemyError) as error:
            self.problem = sentence_of(error)
            log().warning("metrics_unavailable", error=self.problem)
        else:
            self.problem = None
            yield from _families(row)
        yield _gauge("outbox_up", float(self.problem is None), "1 when the ledger could be read, 0 when not.")
        yield _gauge("outbox_scrape_seconds", time.monotonic() - started, "How long reading the ledger took.")

    def _read(self) -> RowMapping:
        with ledger_transaction(self.engine, statement_timeout_seconds=_STATEMENT_SECONDS) as connection:
            check_version(connection)
            return read_metrics(connection, limit=PENDING_LIMIT, quantiles=QUANTILES)


def metrics_app(settings: Settings | None = None) -> AsgiApp:
    """Return an ASGI app that answers every request with the metrics, to be mounted under a path such as /metrics.

    Settings come from the environment unless given. The ledger is read in a thread, so the event loop never waits.
    """
    registry = _registry(settings or load_settings())[0]

    async def app(scope: _Message, receive: Any, send: Callable[[_Message], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            return
        accepted = dict(scope.get("headers", [])).get(b"accept", b"").decode("latin-1")
        encode, content_type = choose_encoder(accepted)
        body = await asyncio.to_thread(encode, registry)
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})

    return app


def metrics_text(settings: Settings) -> tuple[str, str | None]:
    """Return the metrics as text and, when the ledger could not be read, one sentence saying why."""
    registry, collector = _registry(settings)
    encode, _ = choose_encoder("")
    return encode(registry).decode(), collector.problem


def start_server(settings: Settings, *, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serve the metrics, and `/healthz`, over HTTP from threads of this process; return the port and what ends it.

    Raises ConfigurationError when the address cannot be had.
    """
    registry, collector = _registry(settings)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ConfigurationError(
            f"Nothing can listen on {host}:{port} ({error.strerror}): choose another --host or --port."
        ) from error
    server.set_app(with_healthz(make_wsgi_app(registry), collector.engine))

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, stop


def _registry(settings: Settings) -> tuple[CollectorRegistry, LedgerCollector]:
    collector = LedgerCollector(create_outbox_engine(settings, pooled=False))
    registry = CollectorRegistry()
    registry.register(collector)
    return registry, collector


def _families(row: RowMapping) -> Iterator[Metric]:
    for name, column, meaning in _GAUGES:
        yield _gauge(name, row[column], meaning)
    for name, column, meaning in _COUNTERS:
        yield CounterMetricFamily(name, meaning, value=row[column])
    for name, label, column, meaning in _BY_LABEL:
        family = GaugeMetricFamily(name, meaning, labels=[label])
        counts = {**(dict.fromkeys(_OPEN, 0) if label == "status" else {}), **row[column]}
        for value, count in sorted(counts.items()):
            family.add_metric([value], float(count))
        yield family
    for name, column, meaning in _BY_QUANTILE:
        family = GaugeMetricFamily(name, f"{meaning} Absent without one.", labels=["quantile"])
        for quantile, value in zip(QUANTILES, row[column] or (), strict=False):
            family.add_metric([f"{quantile:g}"], float(value))
        yield family


def _gauge(name: str, value: float | None, meaning: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning)
    if value is not None:
        family.add_metric([], value)
    return family
