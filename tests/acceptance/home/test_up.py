"""`outbox up`: one stack on a home, nothing left behind, and a killed one is survived at the next start."""

import http.client
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from outbox_pipeline.processes import ProcessIdentity, wait_until
from outbox_pipeline.settings import today
from tests.fixtures.accounts import (
    LONG,
    OWNER,
    as_owner,
    as_stranger,
    is_root,
    needs_root,
    open_to_strangers,
    stranger_connects,
)
from tests.fixtures.homes import processes_of

pytestmark = pytest.mark.embedded_only

_START_SECONDS = 90


#: As the command `outbox` does, it takes no module from the folder that it is started in.
UP = (sys.executable, "-P", "-m", "outbox_pipeline.cli.main", "up", "--port", "0")

#: A module that somebody else left in a folder, under a name that Dagster's processes import.
PLANTED = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


def start(home: Path, command: Sequence[str] = UP, *, folder: Path | None = None) -> "subprocess.Popen[str]":
    """Start `outbox up` in *folder* and return it once the UI's address is printed."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "OUTBOX_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert "Dagster UI: http://127.0.0.1:" in process.stdout.readline()
    return process


def test_the_engines_say_which_home_they_are_on_and_come_back(own_home: Path) -> None:
    """Their line has the folder and the variable for it, without which another terminal would make a second home.

    One that is killed is started again, and a line says so.
    """
    engines = subprocess.Popen(
        [sys.executable, "-m", "outbox_pipeline.cli.main", "up", "--engines-only"],
        env={**os.environ, "OUTBOX_HOME": str(own_home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert engines.stderr is not None
    line = next(line for line in engines.stderr if "Engines are up" in line)
    os.kill(json.loads((own_home / "clickhouse.json").read_text())["process"]["pid"], signal.SIGKILL)
    again = next((line for line in engines.stderr if "ClickHouse" in line), None)
    engines.send_signal(signal.SIGTERM)
    code = engines.wait(timeout=60)
    engines.stderr.close()

    assert code == 0
    assert again == "ClickHouse had ended and was started again.\n"
    assert f"Engines are up on {own_home}." in line
    assert f"export OUTBOX_HOME='{own_home}'; eval" in line
    assert wait_until(lambda: not processes_of(own_home), seconds=20), processes_of(own_home)


def stop(process: "subprocess.Popen[str]", number: signal.Signals) -> int:
    """Send a signal and return the exit code."""
    process.send_signal(number)
    code = process.wait(timeout=60)
    assert process.stdout is not None
    process.stdout.close()
    return code


def stack_processes(home: Path) -> dict[str, ProcessIdentity]:
    """Return Dagster's processes as the stack has recorded them."""
    state = json.loads((home / "stack.json").read_text())
    return {name: ProcessIdentity(**recorded) for name, recorded in state["processes"].items()}


def first_partition(home: Path) -> str:
    """Return the first day that the UI of a running home shows of `event_log`."""
    query = '{assetNodeOrError(assetKey: {path: ["event_log"]}) {... on AssetNode {partitionKeys}}}'
    request = urllib.request.Request(
        f"{json.loads((home / 'stack.json').read_text())['url']}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["data"]["assetNodeOrError"]["partitionKeys"][0])


def listening(home: Path) -> set[str]:
    """Return the addresses on which a home's processes wait for connections of the network."""
    return {ip for process in processes_of(home) for ip in _addresses(process)}


def _addresses(process: psutil.Process) -> set[str]:
    # A session of PostgreSQL, or a run, may end between the listing and this look.
    with suppress(psutil.NoSuchProcess):
        sockets = process.net_connections("inet")
        return {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}
    return set()


def clickhouse_code(port: int) -> int:
    """Return the error code with which ClickHouse answers somebody who shows no token."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/", body=b"SELECT 1")
    return int(connection.getresponse().headers.get("X-ClickHouse-Exception-Code", "0"))


@pytest.fixture
def open_home(open_folder: Path) -> Iterator[Path]:
    """A home with a long name that lies where every account may enter; what a failing test leaves running is ended."""
    home = open_folder / "of the owner" / LONG
    home.parent.mkdir()
    for name in ("dagster", "gql", "numpy", "psycopg2", "upath"):
        (open_folder / f"{name}.py").write_text(PLANTED)
    yield home
    for process in processes_of(open_folder):
        process.kill()


def assert_closed_to_others(home: Path, open_folder: Path) -> None:
    """Check that a running home lets no other account read it, connect, or have it run what lies in the folder."""
    sockets = [*(home / "run").glob("*"), *(home / "run-elsewhere").glob("*"), *(home / "server" / "socket").glob("*")]
    port = json.loads((home / "clickhouse.json").read_text())["port"]

    assert {"code.sock", ".s.PGSQL.5432"} <= {path.name for path in sockets}
    assert {stranger_connects(path) for path in sockets if path.is_socket()} == {"PermissionError"}
    assert open_to_strangers(home) == []
    assert listening(home) == {"127.0.0.1"}
    assert not (open_folder / "ran").exists()
    assert as_stranger(partial(clickhouse_code, port)) == 516


def test_a_killed_stack_is_replaced_and_an_ended_one_leaves_nothing(open_home: Path, open_folder: Path) -> None:
    """A second start joins; after kill -9 the next start ends what was left; SIGTERM leaves no process and no lock.

    Root's is closed to every other account, though its home is not hidden from them and its path is a long one.
    """
    first = start(open_home, folder=open_folder)
    second = start(open_home, folder=open_folder)
    assert second.wait(timeout=_START_SECONDS) == 0, "the second start says it runs already and ends"

    stop(first, signal.SIGKILL)
    orphans = stack_processes(open_home)
    third = start(open_home, folder=open_folder)

    assert [name for name, process in orphans.items() if process.is_alive()] == []
    again = stack_processes(open_home)
    assert {name for name, process in again.items() if process.is_alive()} == set(orphans) != set()
    assert first_partition(open_home) == str(today())
    if is_root:
        assert_closed_to_others(open_home, open_folder)

    assert stop(third, signal.SIGTERM) == 0
    assert wait_until(lambda: not processes_of(open_home), seconds=20), processes_of(open_home)
    assert not (open_home / "stack.json").exists()


@needs_root
def test_no_other_account_can_read_it_or_make_it_act(open_home: Path, open_folder: Path) -> None:
    """Neither by the files of the home, nor the code server, PostgreSQL or ClickHouse, nor a module where it starts.

    So it is with the home of an ordinary account; root's is looked at where a killed stack is replaced.
    """
    os.chown(open_home.parent, OWNER, OWNER)
    home = open_home.with_name("home")
    up = start(home, as_owner(*UP), folder=open_folder)

    assert_closed_to_others(home, open_folder)
    assert stop(up, signal.SIGTERM) == 0
    assert wait_until(lambda: not processes_of(home), seconds=20), processes_of(home)
