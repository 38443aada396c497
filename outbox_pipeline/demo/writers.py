"""The shop's staff: threads that carry out the visits, each in a transaction, and keep a journal of how it ended.

Invariant: an event is in the journal as committed only after its commit was answered, and as rolled back only after the
rollback. The journal is all the report believes of this side.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from random import Random
from uuid import UUID

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from outbox_pipeline.demo import shop
from outbox_pipeline.demo.visits import Kind, Visit
from outbox_pipeline.errors import TransientError
from outbox_pipeline.ids import uuid7
from outbox_pipeline.postgres.errors import translated

WRITER_COUNT = 4

#: One transaction in this many takes its time between publishing and commit, so that positions commit out of order.
_SLOW_EVERY = 8
_SLOW_SECONDS = 0.05

#: What `publish_event` would refuse and plain SQL lets through; each is wrong in one way.
_MALFORMED_ROWS: tuple[dict[str, object], ...] = (
    {"context": '["not", "an", "object"]'},
    {"type": ""},
    {"version": -1},
    {"time": "1969-07-20 20:17:00+00"},
    {"time": "infinity"},
)
_GOOD_ROW: dict[str, object] = {"type": "order_placed", "context": '{"from": "a script"}', "version": 1, "time": "now"}
_INSERT = text(
    "INSERT INTO outbox.event (event_id, event_type, event_date_time, environment, event_context, metadata_version)"
    " VALUES (:id, :type, CAST(:time AS timestamptz), 'demo', CAST(:context AS json), :version)"
)


@dataclass
class Journal:
    """How each event of the shop ended, by id; `committed` has the time its commit was answered (Unix seconds)."""

    committed: dict[UUID, float] = field(default_factory=dict)
    malformed: set[UUID] = field(default_factory=set)
    rolled_back: set[UUID] = field(default_factory=set)

    def note_committed(self, event_ids: Iterable[UUID]) -> None:
        """Write down that a transaction has just committed."""
        self.committed.update(dict.fromkeys(event_ids, time.time()))


class Writers:
    """The threads at work; opened by `writing`."""

    def __init__(
        self, engine: Engine, journal: Journal, customers: Sequence[int], *, outlive_outages: bool = False
    ) -> None:
        """Start nothing yet; an outage of PostgreSQL ends a thread, or only the visit it is at."""
        self.engine = engine
        self.journal = journal
        self._customers = customers
        self._outlives = (TransientError,) if outlive_outages else ()
        self._malformed = cycle(_MALFORMED_ROWS)
        self._turn = threading.Lock()
        self._stopped = threading.Event()
        self._work: list[Future[None]] = []

    def start(self, pool: ThreadPoolExecutor, visits: Iterable[Visit]) -> None:
        """Let all threads take visits off one list."""
        remaining, opened = iter(visits), time.monotonic()
        self._work = [pool.submit(self._serve, remaining, opened, seed) for seed in range(WRITER_COUNT)]

    def is_done(self) -> bool:
        """Return whether all visits are over; raises what stopped a thread."""
        for work in self._work:
            if work.done():
                work.result()
        return all(work.done() for work in self._work)

    def stop(self) -> None:
        """Let each thread end after the transaction it is in."""
        self._stopped.set()

    def _serve(self, remaining: Iterator[Visit], opened: float, seed: int) -> None:
        chance = Random(seed)
        while (visit := self._next(remaining)) is not None:
            if self._stopped.wait(max(0.0, opened + visit.due_seconds - time.monotonic())):
                return
            with suppress(*self._outlives), translated(self.engine):
                self._carry_out(visit.kind, chance)

    def _next(self, remaining: Iterator[Visit]) -> Visit | None:
        with self._turn:
            return next(remaining, None)

    def _carry_out(self, kind: Kind, chance: Random) -> None:
        try:
            with Session(self.engine) as session, session.begin():
                published = self._publish(session, kind, chance)
                if chance.randrange(_SLOW_EVERY) == 0:
                    time.sleep(_SLOW_SECONDS)
        except shop.PaymentDeclinedError as declined:
            self.journal.rolled_back.update(declined.published)
        else:
            self.journal.note_committed(published)
            if kind is Kind.MALFORMED:
                self.journal.malformed.update(published)

    def _publish(self, session: Session, kind: Kind, chance: Random) -> list[UUID]:
        customer, item = chance.choice(self._customers), chance.choice(list(shop.PRICES))
        if kind is Kind.MALFORMED:
            return [self._write_malformed(session)]
        if kind in (Kind.SALE, Kind.DECLINED):
            return shop.sell(session, customer, item, is_declined=kind is Kind.DECLINED)
        cancelled = shop.cancel_an_order(session) if kind is Kind.CANCELLATION else None
        return [cancelled or shop.place_order(session, customer, item)[1]]

    def _write_malformed(self, session: Session) -> UUID:
        event_id = uuid7()
        with self._turn:
            row = next(self._malformed)
        session.execute(_INSERT, {**_GOOD_ROW, **row, "id": event_id})
        return event_id


@contextmanager
def writing(writers: Writers, visits: Iterable[Visit]) -> Iterator[None]:
    """Run the threads during the block; whatever ends it, they have ended too when it is left."""
    with ThreadPoolExecutor(WRITER_COUNT, thread_name_prefix="shop") as pool:
        try:
            writers.start(pool, visits)
            yield
        finally:
            writers.stop()
