"""Dagster's command line for a code server that shares its address with no other, and whose runs start quickly.

Dagster starts each run in a fresh interpreter, which spends most of a small batch's latency, and of its processor time,
on imports. Here runs are forked from a process that has done them once: it is forked itself, from the code server as
soon as that has imported what both of them need. Invariant: until then nothing opens a connection or starts a Python
thread, so a run shares nothing with another but code. (NumPy's OpenBLAS and Arrow's jemalloc each have a thread there;
both libraries end theirs for a fork and start it again in the child.)

Only on Linux: elsewhere forking after such imports is unsafe, and runs start the slow way.

A code server that was asked to end goes on for as long as its runs work, and then for a minute. On the same port
another one could start beside it, and both would answer ticks in turn, the old one with the old settings.
"""

import argparse
import gc
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from outbox_pipeline.orchestration.host.imports import OF_A_RUN, import_all, keep_python_path
from outbox_pipeline.orchestration.host.instance import DEFINITIONS_MODULE
from outbox_pipeline.processes import wait_until

#: How long a predecessor may take to end; a supervisor that waits longer starts this one again.
_WAIT_SECONDS = 60.0
#: How long calls may go on once the server has no more runs: those of a daemon last until they are cut off.
_GRACE_SECONDS = 5

_FIRST_DAY = "OUTBOX_FIRST_DAY"
#: How long a start waits for it.
_ANSWER_SECONDS = 60.0

#: What every run imports.
_PRELOADED = [DEFINITIONS_MODULE, *OF_A_RUN]


def fork_runs() -> None:
    """Import what a run needs, and let runs be forked where Dagster asks for a fresh interpreter.

    Dagster's server has no setting for it: it asks `multiprocessing` for "spawn". Its multiprocess executor does offer
    "forkserver", so its code is fit to be forked.
    """
    # Dagster loads the definitions once more, and shows what is wrong with them.
    import_all(_PRELOADED)
    # What was imported stays: a run that looks through it for garbage would copy it.
    gc.collect()
    gc.freeze()
    _fork_the_server()
    get_context = multiprocessing.get_context

    def get_forking_context(method: str | None = None) -> BaseContext:
        return get_context("forkserver" if method == "spawn" else method)

    multiprocessing.get_context = get_forking_context  # type: ignore[assignment]


def _fork_the_server() -> None:
    """Start multiprocessing's fork server as a copy of this process; one that has to follow it imports for itself."""
    multiprocessing.set_forkserver_preload(_PRELOADED)
    resource_tracker.ensure_running()
    start = util.spawnv_passfds
    util.spawnv_passfds = _fork  # type: ignore[assignment]
    try:
        forkserver.ensure_running()
    finally:
        util.spawnv_passfds = start


def _fork(_interpreter: bytes, arguments: Sequence[Any], kept: Iterable[int]) -> int:
    """Run the program that ends *arguments* in a copy of this process, with the files *kept* open; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        _close_files({0, 1, 2, *kept})
        with suppress(SystemExit):
            exec(arguments[-1], {})
    except BaseException:  # noqa: BLE001 - what called here belongs to the other process
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def _close_files(kept: set[int]) -> None:
    for number in {int(file.name) for file in Path("/proc/self/fd").iterdir()} - kept:
        with suppress(OSError):
            os.close(number)


def tell_first_day() -> None:
    """Put the ledger's first day into the environment, where the starting process has not done it.

    Asked in a process of its own, because nothing may be connected here. Without an answer the partitions begin with
    OUTBOX_START_DATE.
    """
    if os.environ.get(_FIRST_DAY):
        return
    command = [sys.executable, "-P", "-m", "outbox_pipeline.operations.first_day"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        said = f"PostgreSQL has said nothing for {_ANSWER_SECONDS:.0f} s."
    else:
        if asked.returncode == 0:
            os.environ[_FIRST_DAY] = asked.stdout.strip()
            return
        said = asked.stderr.strip()
    print(
        "The partitions begin with OUTBOX_START_DATE, because the ledger cannot be asked for its first day: "
        f"{said} Start this code server again when it can.",
        file=sys.stderr,
    )


def address_of(arguments: Sequence[str]) -> tuple[str, int] | str | None:
    """Return where Dagster's command will listen: host and port, or the path of a socket; None for other commands."""
    if list(arguments[:2]) != ["api", "grpc"]:
        return None
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # A variable that is empty counts as none.
    options.add_argument("-h", "--host", default=os.environ.get("DAGSTER_GRPC_HOST") or "localhost")
    options.add_argument("-p", "--port", type=int, default=os.environ.get("DAGSTER_GRPC_PORT") or None)
    options.add_argument("-s", "--socket", default=os.environ.get("DAGSTER_GRPC_SOCKET") or None)
    found, _ = options.parse_known_args(arguments[2:])
    return found.socket or ((found.host, found.port) if found.port else None)


def is_free(address: tuple[str, int] | str) -> bool:
    """Tell whether no other process listens there; gRPC itself would share a port, and take a socket away.

    What is no address of this machine is free: Dagster says why it cannot listen there.
    """
    for family, kind, protocol, _, place in _places(address):
        with suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.settimeout(1)
            if probe.connect_ex(place) == 0:
                return False
    return True


def _places(address: tuple[str, int] | str) -> Sequence[tuple[Any, ...]]:
    if isinstance(address, str):
        return [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", address)]
    try:
        return socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError):
        return []


def require_free(address: tuple[str, int] | str, *, seconds: float = _WAIT_SECONDS) -> None:
    """Wait until nothing listens there; SystemExit with a sentence when that takes too long."""
    shown = address if isinstance(address, str) else "{}:{}".format(*address)
    if is_free(address):
        return
    print(f"Another process still listens on {shown}: this code server starts when it has ended.", file=sys.stderr)
    if not wait_until(lambda: is_free(address), seconds=seconds, pause=0.2):
        raise SystemExit(
            f"Another process has not left {shown} within {seconds:.0f} s, and both would answer in turn: end that "
            "one, by SIGKILL with its whole process group if SIGTERM does not do, or listen elsewhere."
        )


if __name__ == "__main__":
    keep_python_path()
    place = address_of(sys.argv[1:])
    if place is not None:
        require_free(place)
        tell_first_day()
    os.environ.setdefault("DAGSTER_GRPC_SHUTDOWN_GRACE_PERIOD", str(_GRACE_SECONDS))
    if sys.platform == "linux":
        fork_runs()

    from dagster._cli import main

    main()  # type: ignore[no-untyped-call]
