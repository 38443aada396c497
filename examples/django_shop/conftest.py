"""Engines for the tests, and the pipeline as a command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import django
import pytest
from django.core.management import call_command
from django.test import Client

from outbox_pipeline.embedded import embedded_engines

Arrived = Callable[[], list[dict[str, object]]]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A browser on the shop, whose database is migrated by Django."""
    home = tmp_path_factory.mktemp("home")
    with embedded_engines(home) as urls:
        os.environ |= {
            "OUTBOX_HOME": str(home),
            "OUTBOX_POSTGRES_URL": str(urls.postgres),
            "OUTBOX_CLICKHOUSE_URL": str(urls.clickhouse),
            "OUTBOX_EVENT_MODULES": "shop.events",
            "PYTHONPATH": str(Path(__file__).parent),
            "DJANGO_SETTINGS_MODULE": "shop.settings",
        }
        django.setup()
        call_command("migrate", verbosity=0)
        run_outbox("init")
        yield Client()
        django.db.connections.close_all()


@pytest.fixture
def arrived(shop: Client) -> Arrived:
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
