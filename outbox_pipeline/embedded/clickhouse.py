"""The life of the local ClickHouse server: start it on a home, join the one that runs, stop it.

The server is a process of its own because the engine lets only one process open a data directory. Its port is
kept in the home after it has gone and taken again, so a URL stays valid over a crash. Call start and stop
under the home's lock.
"""

import http.client
import importlib.util
import json
import os
import sys
from dataclasses import asdict, dataclass
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
_STOP_SECONDS = 15.0


@dataclass(frozen=True)
class ClickHouseHandle:
    """A ClickHouse server that answers."""

    process: ProcessIdentity
    port: int

    @property
    def pid(self) -> int:
        """The server's pid."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return f"http://127.0.0.1:{self.port}"


def start_clickhouse(home: Home) -> ClickHouseHandle:
    """Start the server on the home, or join the one that runs, and return once it answers.

    Raises ConfigurationError when chDB is missing or the server does not start.
    """
    running = running_clickhouse(home)
    if running is None:
        return _start(home)
    if not wait_until(lambda: _answers(running), seconds=_START_SECONDS):
        raise ConfigurationError(
            f"The ClickHouse server with pid {running.pid} does not answer: stop it and try again."
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


def write_state(home: Home, *, port: int) -> None:
    """Note that this process serves the home on *port*; the file appears whole or not at all."""
    me = identify(os.getpid())
    state = {"process": asdict(me) if me else None, "port": port}
    draft = home.clickhouse_state.with_suffix(".new")
    draft.write_text(json.dumps(state))
    draft.replace(home.clickhouse_state)


def _read_state(home: Home) -> ClickHouseHandle | None:
    try:
        state = json.loads(home.clickhouse_state.read_text())
        return ClickHouseHandle(ProcessIdentity(**state["process"]), int(state["port"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _start(home: Home) -> ClickHouseHandle:
    missing = [name for name in ("chdb", "starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"The embedded ClickHouse lacks {', '.join(missing)}: pip install 'outbox-pipeline[embedded]', "
            "or set OUTBOX_CLICKHOUSE_URL."
        )
    last = _read_state(home)
    child = start_detached(
        _command(home, port=last.port if last else 0), log=home.clickhouse_log, environment=_environment()
    )

    def answers_or_ended() -> bool:
        state = _read_state(home)
        return child.poll() is not None or (state is not None and state.pid == child.pid and _answers(state))

    wait_until(answers_or_ended, seconds=_START_SECONDS)
    handle = running_clickhouse(home)
    if handle is None or handle.pid != child.pid:
        child.kill()
        child.wait()
        raise ConfigurationError(f"The ClickHouse server does not start on {home.path}: {_last_words(home)}")
    return handle


def _command(home: Home, *, port: int) -> list[str]:
    module = "outbox_pipeline.embedded.clickhouse_server"
    options = {"--path": home.clickhouse_data, "--port": port, "--home": home.path}
    return [sys.executable, "-m", module, *(str(part) for option in options.items() for part in option)]


def _environment() -> dict[str, str]:
    # The server must find this package however the caller found it: installed, or from a working copy.
    source = str(Path(outbox_pipeline.__file__).parents[1])
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, others] if others else [source])}


def _answers(handle: ClickHouseHandle) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", handle.port, timeout=5)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().read() == b"Ok.\n"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _last_words(home: Home) -> str:
    lines = home.clickhouse_log.read_text(errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'it said nothing'} ({home.clickhouse_log})"
