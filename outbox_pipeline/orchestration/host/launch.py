"""The supervisor's side of `forks`: the process that imports is started here, and given its orders.

Invariant: neither it nor what it has forked outlives the block it is started in, and once it has not answered in time
it does no order any more. Only on Linux: elsewhere forking after such imports is unsafe, and each process imports for
itself.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import psutil

from outbox_pipeline.errors import TransientError
from outbox_pipeline.folders import private_home
from outbox_pipeline.processes import ProcessIdentity, end_group, identify, start_detached

_FORKS_MODULE = "outbox_pipeline.orchestration.host.forks"
#: Longest that imports may take on a machine that is busy, and so an answer.
_ANSWER_SECONDS = 90.0


class Launcher(Protocol):
    """What starts processes: `Forks`, or `Interpreters` where processes are not forked."""

    def start(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> int:
        """Start `python -m COMMAND` in exactly this environment, writing to *log*, and return its pid."""

    def end_of(self, pid: int) -> int:
        """Wait until a process that was started here has ended and return its exit code."""


class Interpreters:
    """Starts an interpreter for each process, which imports for itself."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._started: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> int:
        """Start one."""
        # -P: no module is taken from the folder that the stack is started in, which may be one that others write to.
        started = start_detached([sys.executable, "-P", "-m", *command], log=log, environment=dict(environment))
        self._started[started.pid] = started
        return started.pid

    def end_of(self, pid: int) -> int:
        """Wait for one."""
        return self._started.pop(pid).wait()


class Forks:
    """The process that others are forked from; made by `preloading`."""

    def __init__(self, channel: socket.socket, process: ProcessIdentity | None) -> None:
        """Take the channel to a process that has been started; it may be importing still. None: it has ended again."""
        self._channel = channel
        self._answers = channel.makefile("rb")
        self._process = process
        self._known: set[int] = set()

    def start(self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> int:
        """Start `python -m COMMAND` in exactly this environment and return its pid.

        Waits for the imports. Raises TransientError when the process has ended, or does not answer in time.
        """
        order = {"command": list(command), "log": str(log), "environment": dict(environment)}
        pid = int(self._ask(order)["pid"])
        self._known.add(pid)
        return pid

    def end_of(self, pid: int) -> int:
        """Wait until a process started here has ended and return its exit code. Raises TransientError as above."""
        return int(self._ask({"end_of": pid})["code"])

    def close(self) -> None:
        """End the process, and what it has forked."""
        self._answers.close()
        self._channel.close()
        self._end(spared=set())

    def _end(self, *, spared: set[int]) -> None:
        if self._process is None or not self._process.is_alive():
            return
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            # Stopped, it forks no other one while its children are looked at.
            process.send_signal(signal.SIGSTOP)
            for child in process.children():
                if child.pid not in spared:
                    _kill(child)
        end_group(self._process, grace_seconds=0)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        try:
            self._channel.sendall(json.dumps(order).encode() + b"\n")
            answer: dict[str, Any] = json.loads(self._answers.readline())
        except (OSError, ValueError) as error:
            # Frozen or late, it would do the order when it can, beside the process that is started in its place.
            self._end(spared=self._known)
            raise TransientError("The process that Dagster's processes are forked from does not answer.") from error
        return answer


@contextmanager
def preloading(home: Path, environment: Mapping[str, str]) -> Iterator[Forks | None]:
    """Start the imports of Dagster's processes, which go on during the block; None where processes are not forked."""
    if sys.platform != "linux":
        yield None
        return
    private_home(home)
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    ours, theirs = socket.socketpair()
    ours.settimeout(_ANSWER_SECONDS)
    with theirs:
        process = start_detached(
            [sys.executable, "-P", "-m", _FORKS_MODULE, str(theirs.fileno())],
            log=logs / "forks.log",
            environment={**os.environ, **environment, **home_variables(home)},
            pass_fds=[theirs.fileno()],
        )
    forks = Forks(ours, identify(process.pid))
    try:
        yield forks
    finally:
        forks.close()


def _kill(child: psutil.Process) -> None:
    identity = identify(child.pid)
    with suppress(psutil.NoSuchProcess):
        child.kill()
    # One that has just been forked leads no group yet.
    if identity is not None:
        end_group(identity, grace_seconds=0)


def home_variables(home: Path) -> dict[str, str]:
    """Return what each of Dagster's processes has in its environment from its start, by which it is known later."""
    return {"DAGSTER_HOME": str(home.absolute() / "dagster"), "PYTHONUNBUFFERED": "1"}
