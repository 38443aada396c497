"""Processes told apart by pid and start time, because a pid alone is reused and would then name another process.

The mark of a process never changes while it lives, whatever happens to the machine's clock.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

#: Children started here, kept so that they are reaped once they have ended.
_children: dict[int, "subprocess.Popen[bytes]"] = {}


@dataclass(frozen=True)
class ProcessIdentity:
    """One process and none that gets its pid later: the pid and when it started."""

    pid: int
    mark: str

    def is_alive(self) -> bool:
        """Return whether this very process still runs; a zombie does not."""
        reap(self.pid)
        return start_mark(self.pid) == self.mark


def start_mark(pid: int) -> str | None:
    """Return when process *pid* started, None when there is none or it is a zombie.

    Linux counts in ticks since boot, which a clock step does not move (wall-clock start times shift with it).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return _portable_start_mark(pid)
    return None if fields[0] in "ZX" else fields[19]


def _portable_start_mark(pid: int) -> str | None:
    if Path("/proc/self/stat").exists():
        return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of the process that has *pid* now."""
    mark = start_mark(pid)
    return None if mark is None else ProcessIdentity(pid, mark)


def start_detached(
    command: list[str], *, log: Path, environment: dict[str, str], **more: Any
) -> "subprocess.Popen[bytes]":
    """Start *command*, writing to *log*, in a session of its own: the terminal's Ctrl-C does not reach it.

    What it writes no other account may read. *more* is for `subprocess.Popen`: as whom it runs, and where.
    """
    with open(log, "ab", opener=_private) as output:  # Path.open takes no opener
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            umask=0o077,
            **more,
        )
    _children[child.pid] = child
    return child


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def reap(pid: int) -> None:
    """Collect *pid* if it is a child started here that has ended."""
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]


def end_process(process: ProcessIdentity, *, grace_seconds: float) -> None:
    """Ask *process* to end, and kill it when it has not within *grace_seconds*."""
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
        if not process.is_alive():
            return
        try:
            psutil.Process(process.pid).send_signal(number)
        except psutil.NoSuchProcess:
            return
        wait_until(lambda: not process.is_alive(), seconds=seconds)


def group_members(group: int) -> list[int]:
    """Return the pids of a process group; zombies are none of them, since they do nothing more."""
    return [pid for pid in psutil.pids() if _group_of(pid) == group and start_mark(pid) is not None]


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def variable_of(pid: int, name: str) -> str | None:
    """Return a variable of the environment that process *pid* was started with; None where it cannot be read."""
    try:
        return psutil.Process(pid).environ().get(name)
    except (psutil.Error, OSError):
        return None


def end_group(leader: ProcessIdentity, *, grace_seconds: float) -> bool:
    """Ask a group's leader to end, kill what is left of the group after *grace_seconds*; return whether it is gone.

    Without grace nothing is asked.
    """
    if grace_seconds:
        end_process(leader, grace_seconds=grace_seconds)
    try:
        os.killpg(leader.pid, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        # The number is another account's group by now.
        return True
    return wait_until(lambda: not leader.is_alive() and not group_members(leader.pid), seconds=10.0)


def wait_until(condition: Callable[[], bool], *, seconds: float, pause: float = 0.02) -> bool:
    """Wait until *condition* holds, at most *seconds*; return whether it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
    return True
