"""Dagster's processes are forked from one that has done their imports, and are what an interpreter each would be."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from outbox_pipeline.errors import TransientError
from outbox_pipeline.orchestration.host.launch import Forks, preloading
from outbox_pipeline.processes import wait_until
from tests.fixtures.homes import processes_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each process imports for itself")


def forked(forks: Forks, folder: Path, *arguments: str, **variables: str) -> tuple[int, dict[str, object]]:
    """Run `tests.fixtures.forked` in a forked process and return its exit code and what it found."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **variables}
    log = folder / f"{'-'.join(arguments)}.log"
    pid = forks.start(["tests.fixtures.forked", *arguments], log=log, environment=environment)
    code = forks.end_of(pid)
    return code, json.loads(log.read_text().splitlines()[-1])


def test_a_forked_process_has_its_own_everything_and_imports_nothing_twice(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments, environment, settings, session, log and exit code are its own; what was imported holds no setting.

    Killed, the process that others are forked from says so at the next order; it ends with its supervisor's block.
    """
    # Read before the fork, it would be everybody's.
    monkeypatch.setenv("OUTBOX_START_DATE", "not a day")
    source = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", source)
    with preloading(own_home, {"PYTHONPATH": source}) as forks:
        assert forks is not None
        code, found = forked(forks, own_home, "one", "two", OUTBOX_START_DATE="2026-05-04")
        _, again = forked(forks, own_home, "three", OUTBOX_START_DATE="2026-06-05")
        (parent,) = processes_of(own_home)
        parent.send_signal(signal.SIGKILL)
        with pytest.raises(TransientError, match="does not answer"):
            forked(forks, own_home, "four")

    assert code == 3
    assert found == {
        "arguments": ["one", "two"],
        "name": "tests.fixtures.forked",
        "variables": {"OUTBOX_START_DATE": "2026-05-04"},
        "leads_a_session": True,
        "threads": 1,
        "imported_late": [],
        "days": "2026-05-04",
    }
    assert (again["arguments"], again["days"]) == (["three"], "2026-06-05")
    assert (own_home / "one-two.log").stat().st_mode & 0o077 == 0


def test_it_ends_with_a_supervisor_that_was_killed(own_home: Path) -> None:
    """The channel's end is its end, also in the middle of its imports, so a killed `outbox up` leaves none of it."""
    pid = os.fork()
    if not pid:
        with preloading(own_home, {}):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)

    assert wait_until(lambda: not processes_of(own_home), seconds=60), processes_of(own_home)
