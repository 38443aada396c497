"""Faults for the soak: what can happen to a process or an engine, each as one function on the running product."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.embedded.clickhouse import running_clickhouse, start_clickhouse
from outbox_pipeline.embedded.homes import Home, locked
from outbox_pipeline.embedded.postgres import running_postgres, start_postgres
from outbox_pipeline.orchestration.host.stack import DagsterStack
from outbox_pipeline.postgres.tables import batch
from outbox_pipeline.processes import ProcessIdentity, wait_until

#: How often the ledger is asked while waiting for a delivery to strike at.
_GLANCE_SECONDS = 0.02


@dataclass
class Chaos:
    """The product under attack and what was done to it."""

    home: Home
    stack: DagsterStack
    engine: Engine
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    recovery_seconds: list[float] = field(default_factory=list)
    first_delivery_seconds: dict[str, float] = field(default_factory=dict)
    thawing: list[threading.Timer] = field(default_factory=list)

    def strike(self) -> None:
        """Do one fault, chosen at random."""
        fault = self.chance.choice(FAULTS)
        if fault(self):
            self.counts[fault.__name__] += 1

    def delivering(self) -> tuple[UUID, int] | None:
        """Wait for a delivery under way; return its batch and the pid of its process."""
        found: list[tuple[UUID, int]] = []

        def look() -> bool:
            statement = select(batch.c.batch_id, batch.c.holder).where(batch.c.status == BatchStatus.DELIVERING)
            try:
                with self.engine.connect() as connection:
                    found.extend((row.batch_id, int(row.holder.split(":")[1])) for row in connection.execute(statement))
            except SQLAlchemyError:
                return False
            return bool(found)

        return found[0] if wait_until(look, seconds=30, pause=_GLANCE_SECONDS) else None

    def is_processed(self, batch_id: UUID) -> bool:
        """Tell whether a batch is processed."""
        try:
            with self.engine.connect() as connection:
                status = connection.scalar(select(batch.c.status).where(batch.c.batch_id == batch_id))
        except SQLAlchemyError:
            return False
        return bool(status == BatchStatus.PROCESSED)


def kill_run(chaos: Chaos) -> bool:
    """Kill -9 a run in the middle of its delivery; measures until its batch is processed."""
    target = chaos.delivering()
    if target is None:
        return False
    batch_id, pid = target
    started = time.monotonic()
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    if wait_until(lambda: chaos.is_processed(batch_id), seconds=300, pause=0.2):
        seconds = time.monotonic() - started
        # A run that was past its mark when it was killed needed no recovery.
        if seconds > 1:
            chaos.recovery_seconds.append(seconds)
    return True


def freeze_run(chaos: Chaos) -> bool:
    """SIGSTOP of a run past its lease; it wakes up when another has long taken its batch over."""
    target = chaos.delivering()
    if target is None:
        return False
    _, pid = target
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    timer = threading.Timer(chaos.chance.uniform(40, 90), _wake, [pid])
    timer.start()
    chaos.thawing.append(timer)
    return True


def _wake(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return


def kill_code_server(chaos: Chaos) -> bool:
    """Kill -9 Dagster's code server."""
    return _kill(chaos, "code")


def kill_daemon(chaos: Chaos) -> bool:
    """Kill -9 Dagster's daemon."""
    return _kill(chaos, "daemon")


def kill_webserver(chaos: Chaos) -> bool:
    """Kill -9 Dagster's webserver."""
    return _kill(chaos, "webserver")


def _kill(chaos: Chaos, name: str) -> bool:
    os.kill(chaos.stack.processes[name].pid, signal.SIGKILL)
    return True


def kill_clickhouse(chaos: Chaos) -> bool:
    """Kill -9 ClickHouse, started again at once on the same data."""
    return clickhouse_outage(chaos, seconds=0)


def clickhouse_away(chaos: Chaos) -> bool:
    """ClickHouse is away for up to a minute."""
    return clickhouse_outage(chaos, seconds=chaos.chance.uniform(10, 60))


def clickhouse_outage(chaos: Chaos, *, seconds: float) -> bool:
    """Kill -9 ClickHouse, started again after *seconds*; measures until the first delivery after that."""
    handle = running_clickhouse(chaos.home)
    if handle is None:
        return False
    _end(handle.process)
    threading.Event().wait(seconds)
    with locked(chaos.home):
        start_clickhouse(chaos.home)
    back = time.monotonic()
    before = _processed_count(chaos)
    if wait_until(lambda: _processed_count(chaos) > before, seconds=300, pause=0.2):
        chaos.first_delivery_seconds[f"after {seconds:.0f} s without ClickHouse"] = time.monotonic() - back
    return True


def _end(process: ProcessIdentity) -> None:
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not process.is_alive(), seconds=60), "a killed process is still there"


def _processed_count(chaos: Chaos) -> int:
    statement = select(batch.c.batch_id).where(batch.c.status == BatchStatus.PROCESSED)
    try:
        with chaos.engine.connect() as connection:
            return len(connection.execute(statement).all())
    except SQLAlchemyError:
        return 0


def kill_postgres(chaos: Chaos) -> bool:
    """Kill -9 PostgreSQL's postmaster, started again at once on the same data."""
    handle = running_postgres(chaos.home)
    if handle is None:
        return False
    _end(handle.process)
    with locked(chaos.home):
        start_postgres(chaos.home)
    return True


FAULTS: tuple[Callable[[Chaos], bool], ...] = (
    kill_run,
    kill_run,
    freeze_run,
    kill_code_server,
    kill_daemon,
    kill_webserver,
    kill_clickhouse,
    clickhouse_away,
    kill_postgres,
)


def home_of(path: Path) -> Home:
    """Return the engines' home at a path."""
    return Home(path.resolve())
