"""Everything at once: producers, Dagster and both engines under random kills, freezes and outages, default settings.

`OUTBOX_SOAK_MINUTES` says how long (default 15), `OUTBOX_SOAK_SEED` which order. Prints its figures as one JSON line.
"""

import json
import os
import random
import statistics
import threading
import time
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import select, text

from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.orchestration.host.stack import DagsterStack, dagster_stack
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.postgres.schema import migrate
from outbox_pipeline.postgres.tables import event
from outbox_pipeline.processes import wait_until
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once
from tests.soak.faults import Chaos, clickhouse_outage, home_of
from tests.soak.traffic import Journal, start_producers

MINUTES = float(os.environ.get("OUTBOX_SOAK_MINUTES", "15"))
SEED = int(os.environ.get("OUTBOX_SOAK_SEED", str(int(time.time()))))
LONG_OUTAGE_SECONDS = 300
DRAIN_SECONDS = 600

pytestmark = [pytest.mark.soak, pytest.mark.embedded_only, pytest.mark.timeout(0)]


def keep_alive(stack: DagsterStack, stop: threading.Event) -> None:
    """Start again what is killed, as `outbox up` does."""
    while not stop.wait(1):
        stack.revive()


def stores_of(environment: dict[str, str]) -> Stores:
    """Open both stores with their schema."""
    settings = Settings(
        postgres_url=SecretStr(environment["OUTBOX_POSTGRES_URL"]),
        clickhouse_url=SecretStr(environment["OUTBOX_CLICKHOUSE_URL"]),
    )
    engine = create_outbox_engine(settings)
    migrate(engine)
    client = open_client(settings)
    create_table(client)
    return Stores(engine, client, settings)


def test_nothing_is_lost_or_doubled_whatever_happens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After minutes of random faults every committed event is in ClickHouse once, and nothing else is."""
    home = home_of(tmp_path / "home")
    with embedded_engines(home.path) as urls:
        environment = {
            "OUTBOX_POSTGRES_URL": urls.postgres or "",
            "OUTBOX_CLICKHOUSE_URL": urls.clickhouse or "",
            "OUTBOX_DAGSTER_URL": urls.dagster or "",
            "OUTBOX_HOME": str(home.path),
        }
        stores = stores_of(environment)
        with dagster_stack(home.path, environment, port=0) as stack:
            chaos = Chaos(home, stack, stores.engine, random.Random(SEED))
            journal = attack(chaos, stores)
            drain(stores)
        found = stored(stores)
        figures = report(chaos, journal, found)
        with capsys.disabled():
            print("\n" + json.dumps(figures))

        assert journal.committed <= found <= journal.committed | journal.in_doubt
        assert not journal.rolled_back & found
        assert_each_exactly_once(stores.engine, stores.client)


def attack(chaos: Chaos, stores: Stores) -> Journal:
    """Publish and strike until the time is over, the long outage once, and let everything run again."""
    stop = threading.Event()
    reviver = threading.Thread(target=keep_alive, args=(chaos.stack, stop))
    reviver.start()
    journal, producers = start_producers(stores.engine, 3, stop)
    ends = time.monotonic() + MINUTES * 60
    pause = threading.Event()
    try:
        if MINUTES * 60 > 2 * LONG_OUTAGE_SECONDS:
            clickhouse_outage(chaos, seconds=LONG_OUTAGE_SECONDS)
            chaos.counts["clickhouse_outage_of_5_minutes"] += 1
        while time.monotonic() < ends:
            pause.wait(chaos.chance.uniform(3, 12))
            chaos.strike()
    finally:
        stop.set()
        for thread in [*producers, reviver]:
            thread.join()
        for timer in chaos.thawing:
            timer.join()
    return journal


def drain(stores: Stores) -> None:
    """Wait until every event is processed, by Dagster alone."""
    statement = text(
        "SELECT NOT EXISTS (SELECT FROM outbox.batch WHERE status <> 'processed')"
        " AND NOT EXISTS (SELECT FROM outbox.event_status WHERE status IN ('pending', 'in_flight', 'parked'))"
    )

    def is_done() -> bool:
        with stores.engine.begin() as connection:
            return bool(connection.scalar(statement))

    assert wait_until(is_done, seconds=DRAIN_SECONDS, pause=1), "the backlog did not drain"


def stored(stores: Stores) -> set[UUID]:
    """Return the ids of the events in the outbox."""
    with stores.engine.begin() as connection:
        return set(connection.execute(select(event.c.event_id)).scalars())


def report(chaos: Chaos, journal: Journal, found: set[UUID]) -> dict[str, object]:
    """Return the figures of the soak."""
    recoveries = chaos.recovery_seconds
    return {
        "minutes": MINUTES,
        "seed": SEED,
        "events": len(found),
        "rolled_back": len(journal.rolled_back),
        "in_doubt": len(journal.in_doubt),
        "faults": sum(chaos.counts.values()),
        **dict(sorted(chaos.counts.items())),
        "recovery_after_killed_run_seconds_median": round(statistics.median(recoveries), 1) if recoveries else None,
        "recovery_after_killed_run_seconds_max": round(max(recoveries), 1) if recoveries else None,
        "first_delivery_seconds": {name: round(value, 1) for name, value in chaos.first_delivery_seconds.items()},
    }
