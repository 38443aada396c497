"""A process is known by more than its pid."""

import os
import subprocess
import sys
from pathlib import Path

from outbox_pipeline.embedded.homes import Home, add_user, live_users
from outbox_pipeline.embedded.processes import (
    ProcessIdentity,
    end_process,
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
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        " print('ready', flush=True); signal.pause()"
    )
    log = tmp_path / "log"
    child = start_detached([sys.executable, "-c", code], log=log, environment=dict(os.environ))
    assert wait_until(lambda: log.read_text() == "ready\n", seconds=10)
    identity = identify(child.pid)
    assert identity is not None

    end_process(identity, grace_seconds=0.2)
    assert not identity.is_alive()


def test_entries_of_dead_users_are_forgotten(tmp_path: Path) -> None:
    """A pid that is dead, reused or no pid at all is no user."""
    home = Home(tmp_path)
    home.create()
    mine = add_user(home)
    for name in (f"{os.getpid()}-1-aaaa", "999999999-5-bbbb", "rubbish"):
        (home.users / name).touch()

    assert live_users(home) == [mine]
    assert list(home.users.iterdir()) == [mine]
