"""Real webhooks through the whole product: published from a file, delivered by Dagster, compared as text."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from tests.fixtures.stack import Running

FILE = Path(__file__).parents[2] / "data" / "github_webhooks.jsonl"

pytestmark = pytest.mark.real_input


def publish_file(running: Running) -> str:
    """Run `outbox publish` on the file and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "outbox_pipeline.cli.main", "publish", str(FILE)],
        env={**os.environ, **running.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def raw_context(line: str) -> str:
    """Cut the context out of a line by its neighbours' names, without reading it as JSON."""
    found = re.fullmatch(r'.*?"event_context":(.*),"metadata_version":\d+\}\s*', line, re.DOTALL)
    assert found, line[:200]
    return found.group(1)


def test_real_webhooks_arrive_character_for_character(running: Running) -> None:
    """225 webhooks of 56 types: each context is the text of its line, each time exact; a repeat adds none."""
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line.strip()]
    written = {UUID(json.loads(line)["event_id"]): line for line in lines}

    first = publish_file(running)
    running.wait_for_delivery()
    second = publish_file(running)
    running.wait_for_delivery()

    rows = {
        row["event_id"]: row
        for row in running.stores.client.rows("SELECT * FROM {table:Identifier}")
        if row["event_id"] in written
    }
    with running.stores.engine.begin() as connection:
        stored = dict(connection.execute(text("SELECT event_id, event_context::text FROM outbox.event")).all())
    assert "published 225, already there 0" in first
    assert "published 0, already there 225" in second
    assert len(rows) == len(written) == 225
    assert len(Counter(row["event_type"] for row in rows.values())) == 56
    for event_id, line in written.items():
        row, given = rows[event_id], json.loads(line)
        assert row["event_context"] == stored[event_id] == raw_context(line)
        assert row["event_date_time"] == datetime.fromisoformat(given["event_date_time"])
        assert (row["event_type"], row["environment"]) == (given["event_type"], given["environment"])
        assert row["metadata_version"] == given["metadata_version"]
    doubles = running.stores.client.rows("SELECT count() - uniqExact(event_id) AS n FROM {table:Identifier}")
    assert doubles == [{"n": 0}]
