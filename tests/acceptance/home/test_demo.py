"""The demo as a user runs it: one process that starts everything, proves itself and leaves nothing running."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outbox_pipeline.processes import wait_until
from tests.fixtures.homes import processes_of

pytestmark = pytest.mark.embedded_only


def start_demo(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start `outbox demo` with embedded engines on *home*."""
    return subprocess.Popen(
        [sys.executable, "-m", "outbox_pipeline.cli.main", "demo", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OUTBOX_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_demo_delivers_every_event_once_and_leaves_nothing_running(own_home: Path) -> None:
    """`outbox demo --exit --json` prints a clean report and nothing else, exits 0, and all its processes have ended."""
    demo = start_demo(own_home, "--events", "300", "--exit", "--json")
    output, talk = demo.communicate(timeout=240)
    report = json.loads(output)

    assert demo.returncode == 0, talk
    assert (report["committed"], report["missing"], report["duplicated"]) == (300, 0, 0)
    assert (report["rolled_back_delivered"], report["misjudged"]) == (0, 0)
    assert report["delivered"] + report["quarantined"] == 300
    assert report["quarantined"] == 5
    assert report["rolled_back"] > 0
    assert 0 < report["latency_p50_seconds"] <= report["latency_p95_seconds"] < report["seconds"]
    assert processes_of(own_home) == []


def test_interrupted_demo_ends_cleanly_and_is_no_success(own_home: Path) -> None:
    """Ctrl-C while the shop writes ends engines, Dagster and writers; without a report the exit code is 1."""
    demo = start_demo(own_home, "--events", "20000", "--exit", "--json")
    assert demo.stderr is not None
    while "The shop is open" not in (line := demo.stderr.readline()):
        assert line, "the demo ended before it opened"
    demo.send_signal(signal.SIGINT)
    output, talk = demo.communicate(timeout=90)

    assert (demo.returncode, output) == (1, ""), talk
    assert "Traceback" not in talk
    assert wait_until(lambda: processes_of(own_home) == [], seconds=10)
