"""Engines for the tests, and the pipeline as a command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from users import app

from outbox_pipeline.embedded import embedded_engines

Arrived = Callable[[], list[dict[str, object]]]


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of the running application, whose database has an outbox."""
    home = tmp_path_factory.mktemp("home")
    with embedded_engines(home) as urls:
        os.environ |= {
            "OUTBOX_HOME": str(home),
            "OUTBOX_POSTGRES_URL": str(urls.postgres),
            "OUTBOX_CLICKHOUSE_URL": str(urls.clickhouse),
            "OUTBOX_EVENT_MODULES": "events",
            "PYTHONPATH": str(Path(__file__).parent),
        }
        run_outbox("init")
        with TestClient(app) as opened:
            yield opened


@pytest.fixture
def arrived(client: TestClient) -> Arrived:
    """Return a function that delivers what is pending and returns the contexts that are in ClickHouse."""

    def deliver_and_look() -> list[dict[str, object]]:
        run_outbox("relay", "--until-empty")
        query = "SELECT event_context FROM event_log WHERE event_type = 'user_created' ORDER BY position"
        return [json.loads(line) for line in run_outbox("sql", query, "--format", "TSVRaw").splitlines()]

    return deliver_and_look


def run_outbox(*command: str) -> str:
    """Run a command of the pipeline and return what it prints."""
    program = Path(sys.executable).with_name("outbox")
    return subprocess.run([program, *command], check=True, stdout=subprocess.PIPE, text=True).stdout
