"""Dagster's processes for `outbox up`: code server, daemon and webserver, started, watched and ended together.

Where runs are Celery's, its workers are among them, and a broker unless one is given.

Invariant: at most one stack runs on a home, and none of its processes outlives it. A process that ends by itself is
started again, once nothing is left of it; what a killed stack left behind is ended at the next start, because a process
that is left would go on with old code and old settings. Each process leads a group of its own, which the runs that a
code server starts are in: a run belongs to the server that has started it, and ends with it. The code server starts
runs for every program that reaches it, so it listens on a Unix socket in a folder that no other account may enter.
"""

import fcntl
import json
import os
import socket
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from outbox_pipeline.errors import ConfigurationError, TransientError
from outbox_pipeline.folders import known_socket_folder, private_home, require_own, socket_folder
from outbox_pipeline.logs import log
from outbox_pipeline.loopback import url_opener
from outbox_pipeline.orchestration.host.broker import broker_command, broker_environment
from outbox_pipeline.orchestration.host.instance import (
    CODE_SERVER_MODULE,
    DEFINITIONS_MODULE,
    LOCATION_NAME,
    TABLES_MODULE,
    WEBSERVER_MODULE,
    WORKER_MODULE,
    instance_text,
    prepare_dagster_home,
)
from outbox_pipeline.orchestration.host.launch import Interpreters, Launcher, home_variables, preloading
from outbox_pipeline.processes import (
    ProcessIdentity,
    end_group,
    group_members,
    identify,
    variable_of,
    wait_until,
)

_HOST = "127.0.0.1"
_BROKER_SOCKET = "broker.sock"
_START_SECONDS = 90.0
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class CeleryPlan:
    """How many workers a stack has, how many runs each does at once, and whether the broker is the stack's own.

    `instance` is the text of `dagster.yaml`.
    """

    workers: int
    concurrency: int
    has_broker: bool = True
    instance: str = field(default_factory=partial(instance_text, on_celery=True))

    @property
    def names(self) -> list[str]:
        """Names of the workers' processes."""
        return [f"worker-{number}" for number in range(1, self.workers + 1)]


@dataclass(frozen=True)
class StackPlan:
    """Where a stack's files are, where it listens, the module whose definitions it serves, and who does its runs."""

    home: Path
    web_port: int
    code_socket: Path
    module: str = DEFINITIONS_MODULE
    web_host: str = _HOST
    celery: CeleryPlan | None = None

    @property
    def url(self) -> str:
        """Address of the Dagster UI, on this machine where it listens on every address."""
        host = {"0.0.0.0": _HOST, "::": "::1"}.get(self.web_host, self.web_host)
        return f"http://[{host}]:{self.web_port}" if ":" in host else f"http://{host}:{self.web_port}"

    @property
    def workspace(self) -> Path:
        """The workspace file that leads daemon and webserver to the code server."""
        return self.home / "dagster" / "workspace.yaml"

    @property
    def broker_socket(self) -> Path:
        """Where the stack's own broker listens."""
        return self.code_socket.with_name(_BROKER_SOCKET)

    def command(self, name: str) -> list[str]:
        """Return what follows `python -m` in the command line of one of the processes."""
        web = [WEBSERVER_MODULE, "-h", self.web_host, "-p", str(self.web_port), "-w", str(self.workspace)]
        code = [CODE_SERVER_MODULE, "api", "grpc", "-m", self.module, "--socket", str(self.code_socket)]
        modules = {
            "code": [*code, "--empty-working-directory", "--location-name", LOCATION_NAME],
            "daemon": ["dagster._daemon", "run", "-w", str(self.workspace)],
            "webserver": web,
            "tables": [TABLES_MODULE],
            "broker": broker_command(self.broker_socket, self.home / "broker"),
        }
        if self.celery is not None:
            worker = [WORKER_MODULE, "--concurrency", str(self.celery.concurrency)]
            modules |= dict.fromkeys(self.celery.names, worker)
        return modules[name]


class DagsterStack:
    """The running processes; made by `dagster_stack`."""

    def __init__(self, plan: StackPlan, environment: Mapping[str, str], launcher: Launcher | None = None) -> None:
        """Start nothing yet; *launcher* will start the processes, by default in an interpreter each."""
        self.plan = plan
        self.environment = {**os.environ, **environment}
        self.processes: dict[str, ProcessIdentity] = {}
        self._launcher = launcher or Interpreters()

    def start(self, on_up: Callable[[str], None] = lambda _: None) -> None:
        """Start all processes and wait until the UI answers; *on_up* is told what is up.

        Raises ConfigurationError naming the log when one of them does not come up.
        """
        celery = self.plan.celery
        if celery is not None and celery.has_broker:
            self._start_one("broker")
            self._wait("broker", lambda: _is_listening(self.plan.broker_socket))
            on_up("broker")
        self._start_one("code")
        self._make_tables()
        for name in celery.names if celery is not None else []:
            self._start_one(name)
        self._wait("code", lambda: _is_listening(self.plan.code_socket))
        on_up("code server")
        self._start_one("daemon")
        on_up("daemon")
        self._start_one("webserver")
        self._wait("webserver", lambda: _answers(self.plan.url))
        on_up("UI")

    def revive(self) -> list[str]:
        """Start every process again that has ended, and return their names.

        One whose group cannot be ended is left to the next call: its successor would share its place with it. So is
        one that cannot be started, as on a full disk.
        """
        ended = [name for name, process in self.processes.items() if not process.is_alive()]
        revived = []
        for name in ended:
            if not end_group(self.processes[name], grace_seconds=0):
                continue
            log().warning("process_restarted", name=name, pid=self.processes[name].pid)
            with suppress(ConfigurationError, OSError):
                self._start_one(name)
                revived.append(name)
        return revived

    def stop(self) -> None:
        """End daemon and webserver, then what does runs, and the broker; kill what does not end."""
        workers = self.plan.celery.names if self.plan.celery is not None else []
        for name in ("tables", "daemon", "webserver", *workers, "code", "broker"):
            process = self.processes.pop(name, None)
            if process is not None:
                end_group(process, grace_seconds=_GRACE_SECONDS)

    def _start_one(self, name: str) -> None:
        logs = self.plan.home / "logs"
        logs.mkdir(exist_ok=True)
        identity = identify(self._begin(self.plan.command(name), log=logs / f"{name}.log"))
        if identity is None:
            raise self._not_up(name)
        self.processes[name] = identity
        _write_state(self.plan, self.processes)

    def _begin(self, command: list[str], *, log: Path) -> int:
        try:
            return self._launcher.start(command, log=log, environment=self.environment)
        except TransientError:
            # What they are forked from was killed, or its imports take too long: from now on each imports for itself.
            self._launcher = Interpreters()
            return self._launcher.start(command, log=log, environment=self.environment)

    def _make_tables(self) -> None:
        # Before daemon and webserver connect: processes that make Dagster's tables at once get in each other's way.
        self._start_one("tables")
        code = self._launcher.end_of(self.processes["tables"].pid)
        del self.processes["tables"]
        if code:
            raise self._not_up("tables")

    def _wait(self, name: str, is_up: Callable[[], bool]) -> None:
        process = self.processes[name]
        wait_until(lambda: is_up() or not process.is_alive(), seconds=_START_SECONDS, pause=0.1)
        if not is_up():
            raise self._not_up(name)

    def _not_up(self, name: str) -> ConfigurationError:
        path = self.plan.home / "logs" / f"{name}.log"
        return ConfigurationError(f"Dagster's {name} process did not come up: read the end of {path}.")


@contextmanager
def dagster_stack(
    home: Path,
    environment: Mapping[str, str],
    *,
    port: int,
    host: str = _HOST,
    module: str = DEFINITIONS_MODULE,
    celery: CeleryPlan | None = None,
    launcher: Launcher | None = None,
    on_up: Callable[[str], None] = lambda _: None,
) -> Iterator[DagsterStack]:
    """Run the stack during the block. *environment* holds the URLs; *port* is taken if free, else another.

    Runs are processes of the code server, or with *celery* of its workers.

    Only the UI, behind its door, listens on *host*. Raises ConfigurationError when that is none of this machine's, and
    TransientError when a stack runs on this home already.
    """
    with _only_one(home), ExitStack() as until_ended:
        end_leftovers(home)
        plan = StackPlan(home, free_port(port, host), socket_folder(home) / "code.sock", module, host, celery)
        prepare_dagster_home(home, celery.instance if celery is not None else None)
        _write_workspace(plan)
        launcher = launcher or until_ended.enter_context(preloading(home, environment))
        given = broker_environment(plan.broker_socket) if celery is not None and celery.has_broker else {}
        stack = DagsterStack(plan, {**environment, **given, **home_variables(home)}, launcher)
        try:
            stack.start(on_up)
            yield stack
        finally:
            stack.stop()
            _state_file(home).unlink(missing_ok=True)


def running_stack(home: Path) -> str | None:
    """Return the URL of the UI of the stack that runs on this home, None when none does.

    Raises ConfigurationError when the home belongs to another account.
    """
    require_own(home)
    state = _read_state(home)
    if state is None or not ProcessIdentity(**state["supervisor"]).is_alive():
        return None
    return str(state["url"])


def dagster_variables(home: Path) -> dict[str, str]:
    """Return what leads a terminal to Dagster on this home: DAGSTER_HOME, and the broker of the stack that runs here.

    The `dagster.yaml` is made, or left as it is while a stack runs: its processes read it again when they are started
    again. A broker that the stack was given is not among the variables, and nothing is started. Raises
    ConfigurationError when the home belongs to another account.
    """
    try:
        with _only_one(home):
            return {"DAGSTER_HOME": str(prepare_dagster_home(home))}
    except TransientError:
        has_broker = "broker" in (_read_state(home) or {}).get("processes", {})
    return {"DAGSTER_HOME": str(home.absolute() / "dagster"), **(own_broker(home) if has_broker else {})}


def own_broker(home: Path) -> dict[str, str]:
    """Return the variables that lead to the broker which a stack on this home has, if it has one of its own."""
    return broker_environment(known_socket_folder(home) / _BROKER_SOCKET)


def free_port(wanted: int = 0, host: str = _HOST) -> int:
    """Return *wanted* if nothing listens there on *host*, else a port that is free now.

    Raises ConfigurationError when nothing can listen on *host*.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"The UI cannot listen on {host!r}, which is no address: {error}.") from error
    refused: OSError | None = None
    for port in (wanted, 0):
        with socket.socket(family, kind, protocol) as probe:
            # As the webserver does: connections of the last one, closed but not yet over, keep nothing from listening.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((place[0], port))
            except OSError as error:
                refused = error
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError(f"The UI cannot listen on {host}: {refused}. Give --host an address of this machine.")


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    private_home(home)
    with (home / "stack.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransientError(
                f"A Dagster stack runs on {home} already: {running_stack(home) or 'starting'}."
            ) from None
        yield


def end_leftovers(home: Path) -> None:
    """End what a killed stack has left on this home, runs included. Raises TransientError where that does not end."""
    state = _read_state(home)
    for recorded in (state or {}).get("processes", {}).values():
        process = ProcessIdentity(**recorded)
        if process.is_alive() or _is_ours(process.pid, home):
            log().warning("process_killed", pid=process.pid)
            if not end_group(process, grace_seconds=2):
                raise TransientError(
                    f"Processes of an earlier stack on {home} do not end, even by SIGKILL: end those of group "
                    f"{process.pid} (ps -eo pid,pgid,stat,args), then start again."
                )


def _is_ours(group: int, home: Path) -> bool:
    """Tell whether a group whose leader has ended is the one that was recorded: its number may be another's by now."""
    wanted = str(home.absolute() / "dagster")
    return any(variable_of(pid, "DAGSTER_HOME") == wanted for pid in group_members(group))


def _write_workspace(plan: StackPlan) -> None:
    server = {"socket": str(plan.code_socket), "location_name": LOCATION_NAME}
    # JSON is YAML, whatever is in the path.
    plan.workspace.write_text(json.dumps({"load_from": [{"grpc_server": server}]}) + "\n", encoding="utf-8")


def _state_file(home: Path) -> Path:
    return home / "stack.json"


def _write_state(plan: StackPlan, processes: Mapping[str, ProcessIdentity]) -> None:
    me = identify(os.getpid())
    state = {
        "url": plan.url,
        "supervisor": asdict(me) if me else None,
        "processes": {name: asdict(process) for name, process in processes.items()},
    }
    temporary = _state_file(plan.home).with_suffix(".new")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    temporary.replace(_state_file(plan.home))


def _read_state(home: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads(_state_file(home).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return state


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(path)) == 0


def _answers(url: str) -> bool:
    try:
        with url_opener(url).open(f"{url}/server_info", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
