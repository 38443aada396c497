"""The life of the local ClickHouse server: start it on a home, join the one that runs, stop it.

The server is a process of its own because the engine lets only one process open a data directory. Its port and its
token are kept in the home after it has gone and taken again, so a URL stays valid over a crash. The token gives
access to the data: it is in a file of mode 0600 and in the URL, never on a command line. Call start and stop under the
home's lock.
"""

import http.client
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import outbox_pipeline
from outbox_pipeline.embedded.homes import Home
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.processes import (
    ProcessIdentity,
    end_process,
    identify,
    start_detached,
    wait_until,
)

_START_SECONDS = 60.0
#: A server has opened its engine when it is known to run: one that then says nothing for so long is frozen.
_ANSWER_SECONDS = 20.0
_STOP_SECONDS = 15.0

#: The user whose password is the server's token.
USER = "outbox"

#: What the server has of its parent's environment; anything else may be a secret, and statements may reach it.
INHERITED = (
    # Which programs, libraries and modules are found, a user's own among them.
    "PATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "HOME",
    "PYTHONHOME",
    # How times and texts are read.
    "TZ",
    "TZDIR",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    # Where temporary files go.
    "TMPDIR",
    # How many threads the libraries take on a machine that is shared.
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)


@dataclass(frozen=True)
class ClickHouseHandle:
    """A ClickHouse server that answers."""

    process: ProcessIdentity
    port: int
    #: None for a server of a version that had none.
    token: str | None = field(repr=False)

    @property
    def pid(self) -> int:
        """The server's pid."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Where clients reach it."""
        user = f"{USER}:{self.token}@" if self.token else ""
        return f"http://{user}127.0.0.1:{self.port}"


def start_clickhouse(home: Home, *, more_grants: Sequence[str] = ()) -> ClickHouseHandle:
    """Start the server on the home, or join the one that runs, and return once it answers.

    A server that is started here gets *more_grants* beside the usual rights, such as `READ ON POSTGRES`; the
    threads of its engine are then not shut off from the machine. One of a version that asked for no token is ended
    and started anew. Raises ConfigurationError when chDB is missing or the server does not start.
    """
    running = running_clickhouse(home)
    if running is not None and running.token is None:
        stop_clickhouse(home)
        running = None
    if running is None:
        return _start(home, more_grants)
    if not wait_until(lambda: _answers(running), seconds=_ANSWER_SECONDS):
        raise ConfigurationError(
            f"The ClickHouse server with pid {running.pid} does not answer: end it with kill -9 {running.pid}, then "
            "try again; what was stored is in its files."
        )
    return running


def running_clickhouse(home: Home) -> ClickHouseHandle | None:
    """Return the server that runs on the home, None when there is none."""
    handle = _read_state(home)
    return handle if handle is not None and handle.process.is_alive() else None


def stop_clickhouse(home: Home) -> None:
    """Stop the server on the home, if one runs; it is killed when it does not end in time."""
    running = running_clickhouse(home)
    if running is not None:
        end_process(running.process, grace_seconds=_STOP_SECONDS)


def take_token(home: Home) -> str:
    """Return the token of the home's server, a new one when it never had any."""
    last = _read_state(home)
    return (last.token if last else None) or secrets.token_urlsafe(32)


def write_state(home: Home, *, port: int, token: str) -> None:
    """Note that this process serves the home on *port*; the file appears whole or not at all, and is private."""
    me = identify(os.getpid())
    state = {"process": asdict(me) if me else None, "port": port, "token": token}
    draft = home.clickhouse_state.with_suffix(".new")
    draft.unlink(missing_ok=True)
    # Private from its first byte on, whatever the umask.
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(json.dumps(state))
    draft.replace(home.clickhouse_state)


def _read_state(home: Home) -> ClickHouseHandle | None:
    try:
        state = json.loads(home.clickhouse_state.read_text())
        return ClickHouseHandle(ProcessIdentity(**state["process"]), int(state["port"]), state.get("token"))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _start(home: Home, more_grants: Sequence[str]) -> ClickHouseHandle:
    missing = [name for name in ("chdb", "starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"The embedded ClickHouse lacks {', '.join(missing)}: pip install 'outbox-pipeline[embedded]', "
            "or set OUTBOX_CLICKHOUSE_URL."
        )
    last = _read_state(home)
    child = start_detached(
        _command(home, port=last.port if last else 0, more_grants=more_grants),
        log=home.clickhouse_log,
        environment=_environment(),
        # chDB reads a config.xml of the folder it is loaded in, which may be a project's.
        cwd=home.path,
    )

    def answers_or_ended() -> bool:
        state = _read_state(home)
        return child.poll() is not None or (state is not None and state.pid == child.pid and _answers(state))

    try:
        wait_until(answers_or_ended, seconds=_START_SECONDS)
    except KeyboardInterrupt:
        # It has not said yet that it serves the home, so nothing that leaves the home would end it.
        child.kill()
        child.wait()
        raise
    handle = running_clickhouse(home)
    if handle is None or handle.pid != child.pid:
        child.kill()
        child.wait()
        raise ConfigurationError(f"The ClickHouse server does not start on {home.path}: {_log_tail(home)}")
    return handle


def _command(home: Home, *, port: int, more_grants: Sequence[str]) -> list[str]:
    module = "outbox_pipeline.embedded.clickhouse_server"
    options = [("--path", home.clickhouse_data), ("--port", port), ("--home", home.path)]
    options += [("--grant", grant) for grant in more_grants]
    # -P: no module is taken from the working folder.
    return [sys.executable, "-P", "-m", module, *(str(part) for option in options for part in option)]


def _environment() -> dict[str, str]:
    # The server must find this package however the caller found it: installed, or from a working copy.
    source = str(Path(outbox_pipeline.__file__).parents[1])
    others = os.environ.get("PYTHONPATH")
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {**inherited, "PYTHONPATH": os.pathsep.join([source, others] if others else [source])}


def _answers(handle: ClickHouseHandle) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", handle.port, timeout=5)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().read() == b"Ok.\n"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _log_tail(home: Home) -> str:
    lines = home.clickhouse_log.read_text(errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'its log is empty'} ({home.clickhouse_log})"
