"""The events that are delivered from now on: batches as the ledger marks them, with their rows in the event log.

Invariant: an outage of either server ends nothing and loses nothing of what was marked meanwhile; no look reads more
than a page of rows, or `LIMIT` batches.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from outbox_pipeline.batches import MarkedBatch
from outbox_pipeline.clickhouse.client import EventLogClient, open_client
from outbox_pipeline.clickhouse.delivered_events import events_of_batch
from outbox_pipeline.errors import InDoubtError, TransientError, sentence_of
from outbox_pipeline.monitoring.marks import LIMIT, Marks
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.settings import Settings

_PAGE = 5_000
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class Wanted:
    """What to tell of a batch: events of these types, all when empty, so many at most, with their contexts or not."""

    types: frozenset[str] = frozenset()
    max_events: int | None = None
    with_context: bool = False


@dataclass(frozen=True)
class DeliveredEvent:
    """One event that was delivered; `lag_seconds` lies between its record and the mark, both by PostgreSQL's clock."""

    event_id: UUID
    event_type: str
    position: int
    event_date_time: datetime
    recorded_at: datetime
    processed_at: datetime
    lag_seconds: float
    batch_id: UUID
    generation: int
    event_context: str | None = None


@dataclass(frozen=True)
class More:
    """Of this batch there are more events than were asked for."""

    batch_id: UUID


@dataclass(frozen=True)
class Outage:
    """A server does not answer, as the sentence says; None when both do again."""

    said: str | None


Told = MarkedBatch | DeliveredEvent | More | Outage


def follow(
    engine: Engine,
    settings: Settings,
    wanted: Wanted,
    *,
    interval_seconds: float = 1,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[Told]:
    """Yield each batch that is marked from now on, followed by its events, without an end.

    Between two looks at the ledger lie *interval_seconds*. Raises ConfigurationError where no outage is the reason.
    """
    marks, left, log = Marks(), deque[_Reading](), _Log(settings)
    is_out = False
    try:
        while True:
            found: list[MarkedBatch] = []
            try:
                if not left:
                    found = _marked(engine, marks)
                    left.extend(_Reading(batch, wanted) for batch in found)
                for told in _rest(left, log):
                    if is_out:
                        is_out = False
                        yield Outage(None)
                    yield told
                if is_out:
                    is_out = False
                    yield Outage(None)
            except (TransientError, InDoubtError) as error:
                log.close()
                if not is_out:
                    is_out = True
                    yield Outage(sentence_of(error))
            if is_out or len(found) < LIMIT:
                wait(interval_seconds)
    finally:
        log.close()


def _marked(engine: Engine, marks: Marks) -> list[MarkedBatch]:
    with ledger_transaction(engine, statement_timeout_seconds=_ANSWER_SECONDS) as connection:
        check_version(connection)
        return marks.take(connection)


def _rest(left: "deque[_Reading]", log: "_Log") -> Iterator[MarkedBatch | DeliveredEvent | More]:
    while left:
        yield from left[0].pages(log)
        left.popleft()


class _Log:
    """The event log, over a connection that is opened when it is needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: EventLogClient | None = None

    @property
    def client(self) -> EventLogClient:
        if self._client is None:
            self._client = open_client(self._settings, timeout_seconds=_ANSWER_SECONDS)
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class _Reading:
    """How far a batch has been told."""

    def __init__(self, batch: MarkedBatch, wanted: Wanted) -> None:
        self._batch = batch
        self._wanted = wanted
        self._next = batch.first_position
        self._count = 0
        self._is_begun = False

    def pages(self, log: _Log) -> Iterator[MarkedBatch | DeliveredEvent | More]:
        """Yield the batch and its events from where the last call was broken off."""
        is_last = self._batch.accepted_count == 0
        if is_last and not self._wanted.types:
            yield from self._begin()
        while not is_last:
            limit = self._page()
            rows = self._read(log.client, limit + 1)
            is_last = len(rows) <= limit
            for row in rows[:limit]:
                yield from self._begin()
                self._next = row["position"] + 1
                self._count += 1
                yield self._event(row)
            if not is_last and self._count == self._wanted.max_events:
                yield More(self._batch.batch_id)
                return

    def _begin(self) -> Iterator[MarkedBatch]:
        if not self._is_begun:
            self._is_begun = True
            yield self._batch

    def _page(self) -> int:
        return _PAGE if self._wanted.max_events is None else min(_PAGE, self._wanted.max_events - self._count)

    def _read(self, client: EventLogClient, limit: int) -> list[dict[str, Any]]:
        return events_of_batch(
            client,
            self._batch,
            bounds=(self._next, self._batch.last_position),
            limit=limit,
            types=self._wanted.types,
            with_context=self._wanted.with_context,
        )

    def _event(self, row: dict[str, Any]) -> DeliveredEvent:
        batch = self._batch
        lag = (batch.processed_at - row["recorded_at"]).total_seconds()
        return DeliveredEvent(
            **row,
            processed_at=batch.processed_at,
            lag_seconds=round(lag, 6),
            batch_id=batch.batch_id,
            generation=batch.generation,
        )
