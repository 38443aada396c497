"""Dagster's processes are forked from one that has done their imports, and are what an interpreter each would be."""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil
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


def order_server(forks: Forks, home: Path) -> int:
    """Order a process that does not end by itself and return its pid."""
    environment = {"PATH": os.environ["PATH"], "OUTBOX_HOME": str(home)}
    return forks.start(["http.server", "--bind", "127.0.0.1", "0"], log=home / "server.log", environment=environment)


@pytest.mark.parametrize("has_ordered", [False, True], ids=["idle", "with an order"])
def test_it_ends_with_a_supervisor_that_was_killed(own_home: Path, has_ordered: bool) -> None:
    """The channel's end is its end, also in the middle of its imports, so a killed `outbox up` leaves none of it.

    An order that waited for the imports starts nothing: no file has that process, so no later command would end it.
    """
    pid = os.fork()
    if not pid:
        # The end by this signal is as sudden as by SIGKILL.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        with preloading(own_home, {}) as forks:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            if has_ordered and forks is not None:
                order_server(forks, own_home)
            signal.pause()
    os.waitpid(pid, 0)

    assert wait_until(lambda: not processes_of(own_home), seconds=60), processes_of(own_home)
    assert not (own_home / "server.log").exists()


def test_a_late_answer_starts_nothing_twice(own_home: Path) -> None:
    """One that was frozen does not do its order when it goes on, and what it has started before is left alone."""
    with preloading(own_home, {}) as forks:
        assert forks is not None
        server = order_server(forks, own_home)
        (parent,) = [process for process in processes_of(own_home) if process.pid != server]
        forks._channel.settimeout(0.2)
        parent.suspend()
        with pytest.raises(TransientError, match="does not answer"):
            order_server(forks, own_home)
        with suppress(psutil.NoSuchProcess):
            parent.resume()

        assert wait_until(lambda: [one.pid for one in processes_of(own_home)] == [server], seconds=20)
    os.kill(server, signal.SIGKILL)


def test_what_it_has_forked_ends_with_the_block(own_home: Path) -> None:
    """Ctrl-C between a fork and the note of its pid leaves no process that nothing knows of."""
    with preloading(own_home, {}) as forks:
        assert forks is not None
        order_server(forks, own_home)
        # It has left the group that it was forked in.
        assert wait_until((own_home / "server.log").exists, seconds=20)

    assert processes_of(own_home) == []
