"""Metrics: the ledger's numbers in Prometheus's format, an answer in any case, and a scrape that stays cheap."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import Engine, make_url, text

from outbox_pipeline.monitoring.metrics import metrics_app, metrics_text, start_server
from outbox_pipeline.monitoring.status import read_status
from outbox_pipeline.postgres.queries import query_text
from outbox_pipeline.relay.attempts import request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish
from tests.fixtures.ledger import execute
from tests.fixtures.moves import move_by_hand
from tests.fixtures.plans import rows_read
from tests.fixtures.snapshots import delivered_batches

Samples = dict[tuple[str, str], float]

NOWHERE = Settings(postgres_url=SecretStr("postgresql+psycopg://user:secret@127.0.0.1:9/outbox"))


def parsed(exposed: str) -> Samples:
    """Return the samples by name and the value of their one label."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
    }


def scrape(settings: Settings) -> Samples:
    """Read the metrics once; the ledger must answer."""
    exposed, problem = metrics_text(settings)
    assert problem is None
    return parsed(exposed)


def test_an_empty_outbox_has_every_number(outbox_engine: Engine, settings: Settings) -> None:
    """Nothing published: zeros, and no time or size that would have to be invented."""
    found = scrape(settings)

    assert found["outbox_up", ""] == 1
    assert found["outbox_pending_events", ""] == found["outbox_lag_seconds", ""] == 0
    assert found["outbox_processed_events_total", ""] == 0
    assert {label for name, label in found if name == "outbox_open_batches"} == {
        "cut",
        "requested",
        "delivering",
        "failed",
        "parked",
    }
    assert ("outbox_last_processed_timestamp_seconds", "") not in found
    assert ("outbox_oldest_event_timestamp_seconds", "") not in found


def test_metrics_agree_with_status(stores: Stores) -> None:
    """Delivered, held, in flight, parked and pending events are counted as `outbox status` counts them."""
    publish(stores.engine, 30)
    publish(stores.engine, 2, context="[]")
    relay(stores, until_empty=True)
    publish(stores.engine, 4)
    cut_batches(stores.engine, stores.settings, limit=1)
    move_by_hand(
        stores.engine,
        "UPDATE outbox.batch SET status = 'parked', failures = 3, last_error_kind = 'configuration'"
        " WHERE status = 'cut'",
    )
    publish(stores.engine, 5)
    cut_batches(stores.engine, stores.settings, limit=1)
    publish(stores.engine, 6)

    found, status = scrape(stores.settings), read_status(stores.engine)

    assert found["outbox_processed_events_total", ""] == status.processed == 30
    assert found["outbox_quarantined_events", ""] == status.quarantined == 2
    assert found["outbox_parked_events", ""] == status.parked == 4
    assert found["outbox_in_flight_events", ""] == status.in_flight == 5
    assert found["outbox_pending_events", ""] == status.pending == 6
    assert found["outbox_open_batches", "parked"] == found["outbox_open_batches", "cut"] == 1
    assert found["outbox_failed_attempts", "configuration"] == 3
    assert 0 < found["outbox_lag_seconds", ""] <= status.lag_seconds
    assert found["outbox_processed_batches_total", ""] == found["outbox_last_hour_batches", ""] == 1
    assert found["outbox_last_hour_batch_events", "0.5"] == found["outbox_last_hour_batch_events", "1"] == 30
    assert found["outbox_last_hour_delivery_seconds", "1"] > 0
    assert found["outbox_attempts_total", ""] == 1
    assert found["outbox_oldest_event_timestamp_seconds", ""] <= time.time() + 5
    assert abs(found["outbox_last_processed_timestamp_seconds", ""] - time.time()) < 300


def test_totals_do_not_fall_while_a_batch_is_sent_again(stores: Stores) -> None:
    """A fall would be a restart to Prometheus, and its rate would count everything once more."""
    delivered_batches(stores, (7,))
    before = scrape(stores.settings)
    move_by_hand(
        stores.engine,
        "UPDATE outbox.batch SET status = 'delivering', attempt = 2, holder = 'somebody',"
        " lease_until = now() + interval '1 hour'",
    )

    during = scrape(stores.settings)

    totals = [key for key in before if key[0].endswith("_total")]
    assert len(totals) == 4
    assert all(during[key] >= before[key] for key in totals)
    assert (during["outbox_in_flight_events", ""], during["outbox_lag_seconds", ""]) == (7, 0)


def test_a_batch_counts_once_it_is_marked(stores: Stores) -> None:
    """Rows that ClickHouse has and the ledger has not marked are in flight, with their lag, and in no total."""
    publish(stores.engine, 7)
    cut_batches(stores.engine, stores.settings, limit=1)
    (request,) = request_batches(stores.engine, stores.settings, limit=1)
    delivery = start_requested(stores, request.batch_id, request.attempt)
    delivery.load()

    loaded = scrape(stores.settings)
    delivery.mark()
    delivery.close()
    marked = scrape(stores.settings)

    names = ("outbox_processed_events_total", "outbox_processed_batches_total", "outbox_in_flight_events")
    assert [loaded[name, ""] for name in names] == [0, 0, 7]
    assert [marked[name, ""] for name in names] == [7, 1, 0]
    assert loaded["outbox_lag_seconds", ""] > marked["outbox_lag_seconds", ""] == 0


def test_an_old_gap_shows_its_age(outbox_engine: Engine, settings: Settings) -> None:
    """The oldest gap counts, not the latest."""
    execute(
        outbox_engine,
        "INSERT INTO outbox.gap (positions, holders, observed_at) VALUES"
        " ('{[5,6)}', '{4/1}', now() - interval '90 seconds'), ('{[7,8)}', '{4/2}', now())",
    )

    found = scrape(settings)

    assert found["outbox_gaps", ""] == 2
    assert 90 <= found["outbox_oldest_gap_seconds", ""] < 300


def test_without_postgres_the_scrape_says_so() -> None:
    """`outbox_up 0` is the answer, a sentence without the password the reason, and no stale number stands beside it."""
    exposed, problem = metrics_text(NOWHERE)

    assert {name for name, _ in parsed(exposed)} == {"outbox_up", "outbox_scrape_seconds"}
    assert parsed(exposed)["outbox_up", ""] == 0
    assert "cannot be reached" in str(problem)
    assert "secret" not in str(problem) + exposed


def test_a_database_without_schema_is_not_up(servers: Any) -> None:
    """A forgotten `outbox init` is a sentence too."""
    exposed, problem = metrics_text(Settings(postgres_url=SecretStr(servers.postgres_url)))

    assert parsed(exposed)["outbox_up", ""] == 0
    assert "outbox init" in str(problem)


def test_a_ledger_that_hangs_does_not_hang_the_scrape(outbox_engine: Engine, settings: Settings) -> None:
    """A statement that cannot go on is given up before Prometheus gives the scrape up."""
    started = time.monotonic()
    with outbox_engine.begin() as connection:
        connection.execute(text("LOCK TABLE outbox.batch IN ACCESS EXCLUSIVE MODE"))
        exposed, problem = metrics_text(settings)

    assert parsed(exposed)["outbox_up", ""] == 0
    assert "statement timeout" in str(problem)
    assert time.monotonic() - started < 9


def test_a_role_that_may_only_read_can_scrape(outbox_engine: Engine, settings: Settings) -> None:
    """The grants that deploying.md names for metrics are enough."""
    page = (Path(__file__).parents[2] / "docs" / "deploying.md").read_text()
    (grants,) = re.findall(r"^```sql\n(CREATE ROLE metrics .*?)```$", page, re.MULTILINE | re.DOTALL)
    name = f"metrics_{uuid4().hex[:12]}"
    assert settings.postgres_url is not None
    url = make_url(settings.postgres_url.get_secret_value()).update_query_dict({"options": f"-c role={name}"})
    publish(outbox_engine, 3)
    execute(outbox_engine, re.sub(r"\bmetrics\b", name, grants))
    try:
        found = scrape(Settings(postgres_url=SecretStr(url.render_as_string(hide_password=False))))
    finally:
        execute(outbox_engine, f"DROP OWNED BY {name}; DROP ROLE {name}")

    assert found["outbox_pending_events", ""] == 3


def request(app: Any, **scope: Any) -> tuple[int, dict[bytes, bytes], bytes]:
    """Ask an ASGI app as a server does."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "http", "method": "GET", "path": "/metrics", "headers": [], **scope}, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_the_asgi_app_answers_in_both_formats(outbox_engine: Engine, settings: Settings) -> None:
    """Mounted anywhere, it speaks Prometheus's text format and OpenMetrics."""
    publish(outbox_engine, 3)
    app = metrics_app(settings)

    status, headers, body = request(app)
    openmetrics = request(app, headers=[(b"accept", b"application/openmetrics-text; version=1.0.0")])

    assert (status, parsed(body.decode())["outbox_pending_events", ""]) == (200, 3)
    assert headers[b"content-type"].startswith(b"text/plain")
    assert openmetrics[1][b"content-type"].startswith(b"application/openmetrics-text")
    assert openmetrics[2].endswith(b"# EOF\n")


def test_the_asgi_app_does_not_hold_the_event_loop() -> None:
    """While the ledger is read the application goes on: here until PostgreSQL turned out to be away."""
    app = metrics_app(NOWHERE)
    order: list[str] = []

    async def both() -> None:
        async def send(message: Any) -> None:
            order.append(message["type"])

        scraping = asyncio.create_task(app({"type": "http", "method": "GET", "headers": []}, None, send))
        await asyncio.sleep(0)
        order.append("the application")
        await scraping

    asyncio.run(both())

    assert order == ["the application", "http.response.start", "http.response.body"]


def test_the_server_serves_what_show_prints(outbox_engine: Engine, settings: Settings) -> None:
    """Each request reads the ledger anew."""
    port, stop = start_server(settings, host="127.0.0.1", port=0)
    try:
        pending = []
        for count in (2, 3):
            publish(outbox_engine, count)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                pending.append(parsed(answer.read().decode())["outbox_pending_events", ""])
    finally:
        stop()

    assert pending == [2, 5]


def healthz(settings: Settings) -> tuple[int, dict[str, str], float]:
    """Return what the server says of its health, status and body, and how long that took."""
    port, stop = start_server(settings, host="127.0.0.1", port=0)
    started = time.monotonic()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            return answer.status, json.loads(answer.read()), time.monotonic() - started
    finally:
        stop()


def test_a_server_is_alive_whatever_the_ledger_is(outbox_engine: Engine, settings: Settings) -> None:
    """A supervisor that started it again would bring no ledger back; the body says how that is, and no address."""
    well, away = healthz(settings), healthz(NOWHERE)

    assert well[:2] == (200, {"process": "alive", "ledger": "answers"})
    assert away[:2] == (200, {"process": "alive", "ledger": "does not answer"})


def test_a_silent_ledger_does_not_delay_the_answer() -> None:
    """Kubernetes gives a probe one second; questions do not pile up behind a server that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg://user@127.0.0.1:{silent.getsockname()[1]}/outbox"
        before = threading.active_count()

        status, body, seconds = healthz(Settings(postgres_url=SecretStr(url)))

        assert (status, body["ledger"]) == (200, "silent")
        assert seconds < 1
        assert threading.active_count() <= before + 1


@pytest.fixture
def environment(settings: Settings, tmp_path: Path) -> dict[str, str]:
    """What a command's process is given."""
    assert settings.postgres_url is not None
    return {**os.environ, "OUTBOX_POSTGRES_URL": settings.postgres_url.get_secret_value(), "OUTBOX_HOME": str(tmp_path)}


def test_show_prints_and_fails_when_the_ledger_is_away(outbox_engine: Engine, environment: dict[str, str]) -> None:
    """Data goes to stdout; without the ledger `outbox_up 0` does too, one sentence to stderr, and exit code 1."""
    publish(outbox_engine, 3)
    command = [sys.executable, "-m", "outbox_pipeline.cli.main", "metrics", "show"]
    away = {**environment, "OUTBOX_POSTGRES_URL": "postgresql+psycopg://user:secret@127.0.0.1:9/outbox"}

    well = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    ill = subprocess.run(command, env=away, capture_output=True, text=True, timeout=120, check=False)

    assert (well.returncode, parsed(well.stdout)["outbox_pending_events", ""]) == (0, 3)
    assert (ill.returncode, parsed(ill.stdout)["outbox_up", ""]) == (1, 0)
    assert "cannot be reached" in ill.stderr
    assert "secret" not in ill.stderr + ill.stdout


def test_serve_prints_its_address_and_ends_on_request(outbox_engine: Engine, environment: dict[str, str]) -> None:
    """The command says where it listens, answers there, and a SIGTERM ends it with exit code 0."""
    command = [sys.executable, "-m", "outbox_pipeline.cli.main", "metrics", "serve", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = parsed(answer.read().decode())
        process.terminate()
        code = process.wait(timeout=30)

    assert found["outbox_up", ""] == 1
    assert code == 0


def test_a_scrape_probes_only_what_is_not_delivered(fragmented: Engine) -> None:
    """Scraping reads the unclaimed stretches and one end of the table, however many events are delivered."""
    parameters = {"limit": 100_000, "max_stretches": 20_000, "quantiles": [0.5, 0.95, 1.0]}
    with fragmented.begin() as connection:
        kinds, touched = rows_read(connection, query_text("metrics"), parameters)

    assert kinds <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
    assert touched <= 10_000
