"""What publishing costs a producer, on the embedded PostgreSQL.

`python -m benchmarks.producer [--events N] [--pairs N]`

`one_event` compares `publish_event` with the same bare INSERT through the same session, in pairs that alternate so
that a busy machine slows both; `ratio` is the median of the pairs' ratios. `bulk` is `publish_events` in one call,
contexts of 300 bytes; `best` of its rounds says what the code can do, `median` what this machine did.
CPU microseconds of client and server tell the code's cost apart from the machine's other work: both take turns, so one
second through their sum is what a machine does that has nothing else to do. `wal_bytes_per_event` is what PostgreSQL
writes to its log for an event, full page images included.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import psycopg
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session

from benchmarks.common import save
from outbox_pipeline import publish_event, publish_events
from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.events import prepare_event
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.postgres.schema import migrate
from outbox_pipeline.publish.steps import pages
from outbox_pipeline.settings import Settings

_ROUNDS = 5
_LOGGED = text("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")


def context(number: int) -> dict[str, Any]:
    """Return a context of 300 bytes as JSON."""
    plain = {"order_id": number, "items": ["coffee", "grinder", "kettle"], "total": "49.50", "note": ""}
    return {**plain, "note": "x" * (300 - len(json.dumps(plain, separators=(",", ":"))))}


@contextmanager
def engine_of_its_own() -> Iterator[Engine]:
    """Run a PostgreSQL with an empty outbox."""
    with TemporaryDirectory(prefix="outbox-bench-") as home, embedded_engines(Path(home), clickhouse=False) as urls:
        engine = create_outbox_engine(Settings(postgres_url=SecretStr(urls.postgres or "")))
        migrate(engine)
        yield engine
        engine.dispose()


def seconds(function: Callable[[], object]) -> float:
    """Return how long a call took."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def one_event(engine: Engine, pairs: int) -> dict[str, float]:
    """Compare one event with one INSERT through a Session, in the middle of a transaction."""
    insert = query("insert_event")
    bare: list[float] = []
    published: list[float] = []
    with Session(engine) as session:
        for number in range(pairs + 200):
            # The row and its values are there already: what is timed is the INSERT and nothing else.
            (page,) = pages([prepare_event(context(number), event_type="order_placed")])
            values, event = page.statement.parameters, context(number)
            bare.append(seconds(lambda values=values: session.execute(insert, values)))
            published.append(seconds(lambda event=event: publish_event(session, event, event_type="order_placed")))
        session.rollback()
    warm = list(zip(bare, published, strict=True))[200:]
    return {
        "insert_us": round(median(one for one, _ in warm) * 1e6, 1),
        "publish_event_us": round(median(one for _, one in warm) * 1e6, 1),
        "ratio": round(median(ours / theirs for theirs, ours in warm), 3),
    }


def bulk(session: Session, publish: Callable[[list[Any]], object], count: int) -> dict[str, float]:
    """Publish *count* events in one call, some rounds."""
    events = [context(number) for number in range(count)]
    walls, clients, servers, logged = [], [], [], []
    for _ in range(_ROUNDS):
        backend = psutil.Process(session.scalar(text("SELECT pg_backend_pid()")))
        before = int(session.scalar(_LOGGED) or 0)
        client, server = time.process_time(), sum(backend.cpu_times()[:2])
        walls.append(seconds(lambda: publish(events)))
        clients.append(time.process_time() - client)
        servers.append(sum(backend.cpu_times()[:2]) - server)
        logged.append(int(session.scalar(_LOGGED) or 0) - before)
        session.rollback()
    return {
        "best_events_per_second": round(count / min(walls)),
        "median_events_per_second": round(count / median(walls)),
        "client_cpu_us_per_event": round(min(clients) / count * 1e6, 2),
        "server_cpu_us_per_event": round(min(servers) / count * 1e6, 2),
        "wal_bytes_per_event": round(median(logged) / count),
    }


def staged(connection: Connection, events: list[Any]) -> None:
    """Do the same by COPY into a temporary table, for comparison."""
    rows = [prepare_event(event, event_type="order_placed") for event in events]
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    columns = "event_id, event_type, event_date_time, environment, event_context, metadata_version, trace_context"
    with driver.cursor() as cursor:
        cursor.execute(
            "CREATE TEMP TABLE staged (event_id uuid, event_type text, event_date_time timestamptz, environment text,"
            " event_context json, metadata_version bigint, trace_context text) ON COMMIT DROP"
        )
        with cursor.copy("COPY staged FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        cursor.execute(
            f"INSERT INTO outbox.event ({columns}) SELECT * FROM staged ON CONFLICT (event_id) DO NOTHING"  # noqa: S608
        )


def measure(events: int, pairs: int) -> dict[str, object]:
    """Return every figure."""
    with engine_of_its_own() as engine, Session(engine) as session:
        return {
            "events": events,
            "one_event": one_event(engine, pairs),
            "bulk": bulk(session, lambda many: publish_events(session, many, event_type="order_placed"), events),
            "bulk_by_copy": bulk(session, lambda many: staged(session.connection(), many), events),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=2_000)
    arguments = parser.parse_args()
    save("producer", measure(arguments.events, arguments.pairs))
