"""Runs of `outbox up` are forked from a process that has done their imports; two code servers share no address."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from outbox_pipeline.orchestration.code_server import address_of, require_free, tell_first_day
from outbox_pipeline.orchestration.host.stack import StackPlan
from outbox_pipeline.settings import today
from tests.fixtures.sensors import NOWHERE

_PROGRAM = """
import multiprocessing, sys, threading
from outbox_pipeline.orchestration import code_server

def look(answer):
    preloaded = set(code_server._PRELOADED) <= set(sys.modules)
    answer.put((preloaded, hasattr(sys, "before_the_fork"), hasattr(sys, "after_the_fork")))

if __name__ == "__main__":
    sys.before_the_fork = True
    code_server.fork_runs()
    sys.after_the_fork = True
    print(threading.active_count())
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    run = context.Process(target=look, args=(answer,))
    run.start()
    print(*answer.get(timeout=180))
    run.join()
    print(run.exitcode)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere runs start in a fresh interpreter")
def test_run_starts_with_everything_imported(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A process asked for as Dagster asks for a run's has what the code server had when it forked, and no more."""
    for name, url in (("POSTGRES", "postgresql+psycopg://nobody@127.0.0.1:1/db"), ("CLICKHOUSE", "http://127.0.0.1:1")):
        monkeypatch.setenv(f"OUTBOX_{name}_URL", url)
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM, encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=240, check=True)

    assert done.stdout.split() == ["1", "True", "True", "False", "0"], done.stderr


def listen_on(place: str) -> tuple[socket.socket, tuple[str, int] | str]:
    """Listen as gRPC does, which lets others listen on the same port; returns the socket and its address."""
    if place != "port":
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(place)
        unix.listen()
        return unix, place
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener, ("localhost", listener.getsockname()[1])


@pytest.mark.parametrize("place", ["port", "socket"])
def test_a_successor_starts_when_its_predecessor_is_gone(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both would answer ticks in turn, the old one with the settings of before."""
    listener, address = listen_on("port" if place == "port" else str(tmp_path / "code.sock"))
    with listener:
        with pytest.raises(SystemExit) as refused:
            require_free(address, seconds=0.1)
        assert "has not left" in str(refused.value)
        assert "end that one, by SIGKILL" in str(refused.value)
        started = threading.Thread(target=require_free, args=(address,), kwargs={"seconds": 30})
        capsys.readouterr()
        started.start()
        while "still listens" not in capsys.readouterr().err:
            assert started.is_alive()

    started.join(timeout=30)
    assert not started.is_alive()


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["api", "grpc", "-m", "x", "-h", "10.0.0.4", "-p", "4000", "--location-name", "y"], ("10.0.0.4", 4000)),
        (["api", "grpc", "--port=4000", "--module-name", "x"], ("localhost", 4000)),
        (["api", "grpc", "-m", "x", "--socket", "/run/code.sock"], "/run/code.sock"),
        (["api", "grpc-health-check", "-p", "4000"], None),
        (["definitions", "validate"], None),
    ],
)
def test_where_it_listens_is_read_as_dagster_does(arguments: list[str], address: object) -> None:
    """What starts no server is kept from nothing."""
    assert address_of(arguments) == address


def test_an_empty_variable_says_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster takes it for one that is not set, as a template of a deployment leaves it."""
    for name in ("HOST", "PORT", "SOCKET"):
        monkeypatch.setenv(f"DAGSTER_GRPC_{name}", "")

    assert address_of(["api", "grpc", "-m", "x", "-s", "/run/code.sock"]) == "/run/code.sock"
    assert address_of(["api", "grpc", "-m", "x", "-p", "4000"]) == ("localhost", 4000)
    assert address_of(["api", "grpc", "-m", "x", "-p", "0"]) is None


@pytest.mark.parametrize("left", ["a socket", "a file", "a long path", "no host", "nothing"])
def test_what_nothing_listens_on_is_free(left: str, tmp_path: Path) -> None:
    """Dagster takes the place of what a crash has left, and says of what is no address why it cannot listen there."""
    place: tuple[str, int] | str = str(tmp_path / "code.sock")
    if left == "a socket":
        with listen_on(str(place))[0]:
            pass
    elif left == "a file":
        Path(str(place)).touch()
    elif left == "a long path":
        place = f"{place}{'x' * 200}"
    elif left == "no host":
        place = ("no..host", 4000)

    require_free(place, seconds=0)


def test_the_stack_says_where_it_listens(tmp_path: Path) -> None:
    """The command of `outbox up` is one of those that are read."""
    plan = StackPlan(tmp_path, 3000, tmp_path / "code.sock")

    assert address_of(plan.command("code")[1:]) == str(tmp_path / "code.sock")


def test_a_second_code_server_on_a_port_does_not_start(tmp_path: Path) -> None:
    """The command itself waits before it imports anything."""
    listener, _ = listen_on("port")
    with listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "outbox_pipeline.orchestration.code_server", "api", "grpc", "-m", "x"]
        with subprocess.Popen([*command, "-p", str(port)], stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr is not None
            said = second.stderr.readline()
            second.kill()

    assert f"still listens on localhost:{port}" in said


@pytest.mark.parametrize("given", ["", "2026-02-03"])
@pytest.mark.usefixtures("environment")
def test_the_ledgers_first_day_is_asked_for(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """Started by hand without OUTBOX_FIRST_DAY, the command asks PostgreSQL; what is given stays."""
    monkeypatch.setenv("OUTBOX_FIRST_DAY", given)

    tell_first_day()

    assert os.environ["OUTBOX_FIRST_DAY"] == (given or str(today()))


def test_without_a_ledger_the_partitions_begin_with_the_start_date(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A code server that starts before PostgreSQL does starts, and says what to do."""
    monkeypatch.setenv("OUTBOX_FIRST_DAY", "")
    monkeypatch.setenv("OUTBOX_POSTGRES_URL", f"postgresql+psycopg://user:secret@{NOWHERE}/outbox")

    tell_first_day()
    said = capsys.readouterr().err

    assert os.environ["OUTBOX_FIRST_DAY"] == ""
    assert "begin with OUTBOX_START_DATE" in said
    assert "Start this code server again" in said
    assert "secret" not in said
