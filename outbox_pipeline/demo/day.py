"""A day of the shop: open, write while the pipeline delivers, wait until all has arrived, compare both sides.

It knows nothing of Dagster or a terminal: delivery is started elsewhere, and the caller is shown the state twice a
second.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from random import Random
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from outbox_pipeline.clickhouse.client import clickhouse_client
from outbox_pipeline.demo import shop
from outbox_pipeline.demo.arrivals import watching_arrivals
from outbox_pipeline.demo.report import Report, compare, latencies, look_at_both, quantile
from outbox_pipeline.demo.visits import EVENING_PAUSE_SECONDS, plan_evening, plan_visits
from outbox_pipeline.demo.writers import Journal, Writers, writing
from outbox_pipeline.errors import TransientError
from outbox_pipeline.monitoring.status import Status, read_status
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.errors import translated
from outbox_pipeline.postgres.tables import event
from outbox_pipeline.settings import Settings

LOOK_SECONDS = 0.5

#: The wait ends when nothing has moved for so long.
PATIENCE_SECONDS = 180.0
#: Longest wait for the opening event; without it the shop opens all the same and the report will tell.
OPENING_SECONDS = 60.0


@dataclass(frozen=True)
class Look:
    """What is shown while the day goes on; counts are of this day's events, None while PostgreSQL does not answer."""

    phase: str
    published: int
    delivered: int
    quarantined: int | None
    lag_seconds: float | None


class ShopDay:
    """One demo from opening to report; close it at the end."""

    def __init__(self, settings: Settings) -> None:
        """Connect nowhere yet."""
        self.settings = settings
        self.status: Status | None = None
        self._engine = create_outbox_engine(settings)
        self._journal = Journal()
        self._held_before = 0
        self._until_closed = ExitStack()
        self._until_closed.callback(self._engine.dispose)
        self._watching = self._until_closed.enter_context(ExitStack())

    def open(self) -> None:
        """Make the shop's tables and publish that it is open; call it before what delivers has started.

        So the first look of what delivers finds an event. Its arrival shows that all of it is up: what is measured
        afterwards is delivery and not Dagster's start.
        """
        with translated(self._engine):
            self._customers = shop.create_tables(self._engine)
        self._after = self._last_position()
        self._held_before = read_status(self._engine).quarantined
        self._arrivals = self._watching.enter_context(watching_arrivals(self.settings, after=self._after))
        with translated(self._engine), Session(self._engine) as session, session.begin():
            self._opening = shop.open_doors(session, len(self._customers))
        self._journal.note_committed([self._opening])

    @property
    def opening_id(self) -> UUID:
        """Id of the first event, which says that the shop is open."""
        return self._opening

    def close(self) -> None:
        """End what watches and close all connections."""
        self._until_closed.close()

    def run(self, event_count: int, on_look: Callable[[Look], None]) -> Report:
        """Commit events until they are *event_count*, wait until they have arrived, and report.

        The wait is bounded, so the report may show events missing; `status` then holds the ledger's last word.
        *on_look* runs in the caller's thread.
        """
        self._on_look = on_look
        started = time.monotonic()
        self._wait_for_the_opening()
        writers = Writers(self._engine, self._journal, self._customers)
        with writing(writers, plan_visits(event_count - 1, Random())):
            while not writers.is_done():
                self._look("The shop is open")
        self._drain()
        report = self._report(started)
        self._watching.close()
        return report

    @contextmanager
    def evening(self, *, pause_seconds: float = EVENING_PAUSE_SECONDS) -> Iterator[None]:
        """Let a customer come every *pause_seconds* during the block, through outages of PostgreSQL."""
        writers = Writers(self._engine, Journal(), self._customers, outlive_outages=True)
        with writing(writers, plan_evening(Random(), pause_seconds=pause_seconds)):
            yield

    def _wait_for_the_opening(self) -> None:
        deadline = time.monotonic() + OPENING_SECONDS
        while self._opening not in self._arrivals.seen and time.monotonic() < deadline:
            self._look("Waiting for the first event")

    def _drain(self) -> None:
        # Only a new low counts as progress: other publishers on this outbox must not keep us here for ever.
        lowest, moved_at = None, time.monotonic()
        while time.monotonic() - moved_at < PATIENCE_SECONDS:
            self._look("Delivering the rest")
            remaining = None if self.status is None else self.status.pending + self.status.in_flight
            if remaining == 0:
                return
            if remaining is not None and (lowest is None or remaining < lowest):
                lowest, moved_at = remaining, time.monotonic()

    def _look(self, phase: str) -> None:
        time.sleep(LOOK_SECONDS)
        try:
            self.status = read_status(self._engine)
        except TransientError:
            self.status = None
        # A copy: the writers go on adding to it meanwhile.
        published = list(self._journal.committed)
        delivered = sum(event_id in self._arrivals.seen for event_id in published)
        quarantined = self.status.quarantined - self._held_before if self.status else None
        lag_seconds = self.status.lag_seconds if self.status else None
        self._on_look(Look(phase, len(published), delivered, quarantined, lag_seconds))

    def _last_position(self) -> int:
        with ledger_transaction(self._engine) as connection:
            return int(connection.execute(select(func.coalesce(func.max(event.c.position), 0))).scalar_one())

    def _report(self, started: float) -> Report:
        with clickhouse_client(self.settings) as client:
            found = look_at_both(self._engine, client, after=self._after)
        seconds = time.monotonic() - started
        committed, seen = self._journal.committed, self._arrivals.seen
        shopping = {event_id: at for event_id, at in committed.items() if event_id != self._opening}
        measured = latencies(shopping, seen)
        first = latencies({self._opening: committed[self._opening]}, seen)
        return Report(
            comparison=compare(self._journal, found),
            seconds=round(seconds, 3),
            opening_event_seconds=_rounded(quantile(first, 1)),
            latency_p50_seconds=_rounded(quantile(measured, 0.5)),
            latency_p95_seconds=_rounded(quantile(measured, 0.95)),
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
