"""The process that Dagster's processes are forked from: it has imported once what all of them need.

In an interpreter each, code server, daemon and webserver spend more than half of a start's processor time on the same
imports. Invariants: this process opens no connection, starts no Python thread and reads no setting, so what it forks
shares code with it and nothing else, and is what `python -m` would have started. It does what its supervisor orders
over a channel, and ends when the channel does: an order of a supervisor that has ended meanwhile starts nothing.
"""

import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from outbox_pipeline.orchestration.host.imports import OF_A_RUN, OF_THE_COMMANDS, OF_THE_DEFINITIONS, import_all

_PR_SET_NAME = 15


def main(channel: socket.socket) -> None:
    """Import everything, then fork a process for each order; in a forked process, run the module it is for."""
    import_all((*OF_THE_COMMANDS, *OF_A_RUN, *OF_THE_DEFINITIONS))
    # What was imported stays: a process that looks through it for garbage would copy it.
    gc.collect()
    gc.freeze()
    order = _serve(channel)
    if order is not None:
        _become(order)


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Answer orders until the channel ends: None. Returns the order in each process that was forked for one."""
    with channel, channel.makefile("rb") as orders:
        for line in orders:
            # It may have been killed during the imports, and left its order behind: nothing would know of the process.
            if _is_left(channel):
                break
            order = json.loads(line)
            if "end_of" in order:
                _, status = os.waitpid(order["end_of"], 0)
                _answer(channel, code=os.waitstatus_to_exitcode(status))
                continue
            _reap()
            pid = os.fork()
            if not pid:
                return order  # type: ignore[no-any-return]
            if not _answer(channel, pid=pid):
                os.kill(pid, signal.SIGKILL)
    return None


def _is_left(channel: socket.socket) -> bool:
    """Return whether the other end is closed, though orders may still wait to be read."""
    poll = select.poll()
    poll.register(channel, 0)
    return bool(poll.poll(0))


def _answer(channel: socket.socket, **answer: int) -> bool:
    with suppress(BrokenPipeError):
        channel.sendall(json.dumps(answer).encode() + b"\n")
        return True
    return False


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(order: dict[str, Any]) -> None:
    """Be what `python -m MODULE ARGUMENTS` would be in this environment, in a session of its own."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    os.environ.clear()
    os.environ.update(order["environment"])
    module, *arguments = order["command"]
    # `ps -o comm` and `top` would show a name that all of them share.
    ctypes.CDLL(None).prctl(_PR_SET_NAME, f"dagster-{Path(order['log']).stem}"[:15].encode(), 0, 0, 0)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
