"""A process is known by more than its pid."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from outbox_pipeline.embedded.homes import Home, add_user, live_users
from outbox_pipeline.orchestration.host.stack import end_leftovers
from outbox_pipeline.processes import (
    ProcessIdentity,
    end_group,
    end_process,
    group_members,
    identify,
    start_detached,
    wait_until,
)


def test_pid_that_was_reused_is_not_the_process() -> None:
    """The same pid with another start time is a stranger."""
    me = identify(os.getpid())

    assert me is not None
    assert me.is_alive()
    assert not ProcessIdentity(me.pid, "1").is_alive()


def test_zombie_is_dead() -> None:
    """A process that has ended and was not collected yet does not count as alive."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    identity = identify(child.pid)

    assert identity is not None
    assert wait_until(lambda: not identity.is_alive(), seconds=10)
    child.wait()


def test_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    """Ending a process does not depend on its consent."""
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    log = tmp_path / "log"
    child = start_detached([sys.executable, "-c", code], log=log, environment=dict(os.environ))
    assert wait_until(lambda: log.read_text() == "ready\n", seconds=10)
    identity = identify(child.pid)
    assert identity is not None

    end_process(identity, grace_seconds=0.2)
    assert not identity.is_alive()


StartGroup = Callable[..., tuple[ProcessIdentity, ProcessIdentity]]

#: Starts one more process in its group, and neither of them ends when it is asked to.
_STUBBORN = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    print(os.getpid(), flush=True)
signal.pause()
"""


@pytest.fixture
def start_group(tmp_path: Path) -> Iterator[StartGroup]:
    """Return a function that starts a group of two, and returns its leader and the other one."""
    groups = []

    def start(**variables: str) -> tuple[ProcessIdentity, ProcessIdentity]:
        log = tmp_path / "log"
        child = start_detached([sys.executable, "-c", _STUBBORN], log=log, environment={**os.environ, **variables})
        groups.append(child.pid)
        assert wait_until(lambda: log.read_text().endswith("\n"), seconds=10)
        leader, member = identify(child.pid), identify(int(log.read_text()))
        assert leader is not None
        assert member is not None
        assert set(group_members(leader.pid)) == {leader.pid, member.pid}
        return leader, member

    yield start
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def test_nothing_of_a_group_is_left(start_group: StartGroup) -> None:
    """When this returns its successor may start: the leader has ended, and so has what the leader had started."""
    leader, member = start_group()

    assert end_group(leader, grace_seconds=0.2)
    assert not leader.is_alive()
    assert not member.is_alive()
    assert end_group(leader, grace_seconds=0), "once more is no error"


def write_state(home: Path, leader: ProcessIdentity) -> None:
    """Write what a killed stack leaves behind."""
    home.mkdir()
    state = {"url": "", "supervisor": None, "processes": {"code": asdict(leader)}}
    (home / "stack.json").write_text(json.dumps(state))


def test_runs_of_a_killed_stack_are_ended(tmp_path: Path, start_group: StartGroup) -> None:
    """Also where their code server was killed too, and only its group tells whose they are."""
    home = tmp_path / "home"
    leader, member = start_group(DAGSTER_HOME=str(home / "dagster"))
    write_state(home, leader)
    os.kill(leader.pid, signal.SIGKILL)
    assert wait_until(lambda: not leader.is_alive(), seconds=10)

    end_leftovers(home)

    assert not member.is_alive()


def test_a_group_that_has_the_number_by_now_is_left_alone(tmp_path: Path, start_group: StartGroup) -> None:
    """Numbers are used again; what does not belong to the home is not ended."""
    home = tmp_path / "home"
    leader, member = start_group(DAGSTER_HOME="/elsewhere")
    write_state(home, ProcessIdentity(leader.pid, "1"))

    end_leftovers(home)

    assert member.is_alive()


def test_entries_of_dead_users_are_forgotten(tmp_path: Path) -> None:
    """A pid that is dead, reused or no pid at all is no user."""
    home = Home(tmp_path)
    home.create()
    mine = add_user(home)
    for name in (f"{os.getpid()}-1-aaaa", "999999999-5-bbbb", "rubbish"):
        (home.users / name).touch()

    assert live_users(home) == [mine]
    assert list(home.users.iterdir()) == [mine]
