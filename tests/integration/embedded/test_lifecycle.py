"""Engines live as long as somebody uses them, and come back after any process involved was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import clickhouse_connect
import psycopg
import pytest

from outbox_pipeline.embedded.clickhouse import running_clickhouse, start_clickhouse
from outbox_pipeline.embedded.engines import EngineUrls, embedded_engines, running_engines
from outbox_pipeline.embedded.homes import Home, locked
from outbox_pipeline.embedded.places import data_folders
from outbox_pipeline.embedded.postgres import running_postgres, start_postgres
from outbox_pipeline.processes import wait_until
from tests.fixtures.commands import run_outbox
from tests.fixtures.homes import processes_of
from tests.fixtures.queries import execute, plain, rows

pytestmark = pytest.mark.embedded_only

NOTHING = EngineUrls(None, None, None)

#: A user of the engines in a process of its own: says its URLs, then stays until told to go or killed.
USER = """
import sys
from pathlib import Path
from outbox_pipeline.embedded.engines import embedded_engines
with embedded_engines(Path(sys.argv[1])) as urls:
    print(urls, flush=True)
    sys.stdin.readline()
"""

ENDLESS = "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))"
ASK = "import sys, clickhouse_connect; clickhouse_connect.get_client(dsn=sys.argv[1]).command(sys.argv[2])"


@pytest.fixture
def users() -> Iterator[list["subprocess.Popen[str]"]]:
    """Return a list of processes that are ended after the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate(timeout=30)


def start_user(home: Path) -> "subprocess.Popen[str]":
    """Start a process that uses the engines."""
    return subprocess.Popen(
        [sys.executable, "-c", USER, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def said(user: "subprocess.Popen[str]") -> str:
    """Return the URLs a user was given."""
    assert user.stdout is not None
    return user.stdout.readline().strip()


def leave(user: "subprocess.Popen[str]") -> None:
    """Let a user go the ordinary way."""
    user.communicate("\n", timeout=60)
    assert user.returncode == 0


def kill(pid: int) -> None:
    """Kill a process as the kernel does when memory is short, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)


def test_two_processes_that_start_at_once_share_the_engines(
    tmp_path: Path, users: list["subprocess.Popen[str]"]
) -> None:
    """Both get the same URLs, one server of each kind runs, and it runs until the second has gone."""
    users += [start_user(tmp_path) for _ in range(2)]
    first, second = (said(user) for user in users)

    assert first == second
    assert "None" not in first
    commands = [" ".join(process.cmdline()) for process in processes_of(tmp_path)]
    assert len([command for command in commands if " -D " in command or "--path" in command]) == 2
    leave(users[0])
    assert running_engines(tmp_path) != NOTHING
    leave(users[1])
    assert running_engines(tmp_path) == NOTHING
    assert processes_of(tmp_path) == []


def test_engines_stop_after_the_block_and_keep_their_data(tmp_path: Path) -> None:
    """What was written is there at the next start, and nothing runs in between."""
    with embedded_engines(tmp_path) as urls:
        write(urls, 1)
    assert running_engines(tmp_path) == NOTHING
    assert processes_of(tmp_path) == []

    with embedded_engines(tmp_path) as urls:
        assert read(urls) == ([1], [1])


def test_use_inside_a_use_does_not_stop_the_engines(tmp_path: Path) -> None:
    """Leaving the inner block leaves the outer one its engines; an engine asked for later joins."""
    with embedded_engines(tmp_path, postgres=False) as outer:
        assert outer.postgres is None
        with embedded_engines(tmp_path, postgres=False) as inner:
            assert inner == outer
        assert running_engines(tmp_path) == outer


def test_killed_clickhouse_comes_back_on_the_same_port(tmp_path: Path) -> None:
    """A URL stays valid over a crash, and what was acknowledged is there."""
    with embedded_engines(tmp_path, postgres=False) as urls:
        assert urls.clickhouse is not None
        client = clickhouse_connect.get_client(dsn=urls.clickhouse)
        client.command("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")
        client.insert("t", [[1]])
        handle = running_clickhouse(Home(tmp_path))
        assert handle is not None
        kill(handle.pid)
        assert wait_until(lambda: running_clickhouse(Home(tmp_path)) is None, seconds=10)

        with locked(Home(tmp_path)):
            again = start_clickhouse(Home(tmp_path))
        assert (again.url, again.pid != handle.pid) == (urls.clickhouse, True)
        assert client.command("SELECT a FROM t") == 1
    assert processes_of(tmp_path) == []


def test_killed_postgres_comes_back(tmp_path: Path) -> None:
    """A postmaster killed with its file left behind does not stop the next start, and commits are there."""
    with embedded_engines(tmp_path, clickhouse=False) as urls:
        execute(urls, "CREATE TABLE t (a int)", "INSERT INTO t VALUES (1)")
        handle = running_postgres(Home(tmp_path))
        assert handle is not None
        kill(handle.pid)
        assert wait_until(lambda: not handle.process.is_alive(), seconds=10)

        with locked(Home(tmp_path)):
            start_postgres(Home(tmp_path))
        assert rows(urls, "SELECT a FROM t") == [1]
    assert processes_of(tmp_path) == []


def test_postmaster_file_of_a_stranger_does_not_stop_the_start(tmp_path: Path) -> None:
    """A `postmaster.pid` whose pid is somebody else's by now is not believed."""
    with embedded_engines(tmp_path, clickhouse=False):
        file = data_folders(Home(tmp_path))[0] / "postmaster.pid"
        lines = file.read_text().splitlines()
    file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    assert running_engines(tmp_path) == NOTHING

    with embedded_engines(tmp_path, clickhouse=False) as urls:
        assert rows(urls, "SELECT 1") == [1]


def test_engines_of_a_killed_user_are_adopted(tmp_path: Path, users: list["subprocess.Popen[str]"]) -> None:
    """The next user joins what the killed one left, and ends it in order."""
    users.append(start_user(tmp_path))
    urls = said(users[0])
    kill(users[0].pid)

    with embedded_engines(tmp_path) as adopted:
        assert str(adopted) == urls
    assert processes_of(tmp_path) == []


def test_engines_nobody_uses_any_more_end_by_themselves(tmp_path: Path, users: list["subprocess.Popen[str]"]) -> None:
    """A few seconds after the last user was killed both engines are gone."""
    users.append(start_user(tmp_path))
    said(users[0])
    kill(users[0].pid)

    assert wait_until(lambda: processes_of(tmp_path) == [], seconds=20)
    with embedded_engines(tmp_path) as urls:
        assert urls.clickhouse is not None


def test_server_ends_when_its_home_is_removed(tmp_path: Path) -> None:
    """A folder that is thrown away takes its server with it."""
    with embedded_engines(tmp_path / "home", postgres=False):
        handle = running_clickhouse(Home(tmp_path / "home"))
        assert handle is not None
        shutil.rmtree(tmp_path / "home")

        assert wait_until(lambda: not handle.process.is_alive(), seconds=10)


def test_interrupt_of_the_terminal_does_not_reach_the_engines(
    tmp_path: Path, users: list["subprocess.Popen[str]"]
) -> None:
    """Engines are in sessions of their own, so that their user can end them in order."""
    with embedded_engines(tmp_path):
        clickhouse, postgres = running_clickhouse(Home(tmp_path)), running_postgres(Home(tmp_path))

        assert clickhouse is not None
        assert postgres is not None
        assert os.getsid(0) not in {os.getsid(clickhouse.pid), os.getsid(postgres.pid)}


def test_server_with_a_running_query_ends_quickly(tmp_path: Path) -> None:
    """Stopping does not wait for a query that never ends."""
    with embedded_engines(tmp_path, postgres=False) as urls:
        assert urls.clickhouse is not None
        busy = subprocess.Popen([sys.executable, "-c", ASK, urls.clickhouse, ENDLESS], stderr=subprocess.DEVNULL)
        client = clickhouse_connect.get_client(dsn=urls.clickhouse)
        count = "SELECT countIf(query = {query:String}) FROM system.processes"
        assert wait_until(lambda: client.command(count, parameters={"query": ENDLESS}) == 1, seconds=20)
        handle = running_clickhouse(Home(tmp_path))
        assert handle is not None
        os.kill(handle.pid, signal.SIGTERM)

        assert wait_until(lambda: not handle.process.is_alive(), seconds=10)
        assert busy.wait(10) != 0


def test_postgres_is_set_up_for_the_product(tmp_path: Path) -> None:
    """Both databases exist, prepared transactions are possible, and commits are durable."""
    with embedded_engines(tmp_path, clickhouse=False) as urls:
        assert rows(urls, "SELECT datname FROM pg_database WHERE datname IN ('dagster', 'outbox') ORDER BY 1") == [
            "dagster",
            "outbox",
        ]
        assert rows(urls, "SELECT current_setting('max_connections')") == ["200"]
        assert rows(urls, "SELECT current_setting('max_prepared_transactions')") == ["20"]
        assert rows(urls, "SELECT current_setting('fsync')") == ["on"]
        assert urls.dagster is not None
        assert urls.dagster.startswith("postgresql+psycopg2://postgres@/dagster?host=/")


def test_variables_for_another_server_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What psql and libpq are told of other servers does not lead away from the embedded one, or change its start."""
    monkeypatch.setenv("PGPORT", "6000")
    monkeypatch.setenv("PGOPTIONS", "-c default_transaction_read_only=on")
    with embedded_engines(tmp_path, clickhouse=False) as urls:
        assert rows(urls, "SELECT count(*) FROM pg_database WHERE datname IN ('dagster', 'outbox')") == [2]


def test_home_with_a_long_name_works(tmp_path: Path) -> None:
    """The socket moves when the path is too long for one."""
    home = tmp_path / ("long name " * 12).strip()
    with embedded_engines(home, clickhouse=False) as urls:
        assert rows(urls, "SELECT 1") == [1]


def write(urls: EngineUrls, number: int) -> None:
    """Write a row into each engine."""
    with psycopg.connect(plain(urls)) as connection:
        connection.execute("CREATE TABLE t (a int)")
        connection.execute("INSERT INTO t VALUES (%s)", [number])
    client = clickhouse_connect.get_client(dsn=str(urls.clickhouse))
    client.command("CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a")
    client.insert("t", [[number]])


def read(urls: EngineUrls) -> tuple[list[object], list[object]]:
    """Read the rows of each engine."""
    client = clickhouse_connect.get_client(dsn=str(urls.clickhouse))
    return rows(urls, "SELECT a FROM t"), [row[0] for row in client.query("SELECT a FROM t").result_rows]


def test_the_doctor_waits_for_no_engine_that_hangs(
    environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen engine is one finding with its pid, told within seconds, and PostgreSQL is checked beside it."""
    monkeypatch.delenv("OUTBOX_CLICKHOUSE_URL")
    home = tmp_path / "frozen"
    monkeypatch.setenv("OUTBOX_HOME", str(home))
    with embedded_engines(home, postgres=False):
        server = running_clickhouse(Home(home))
        assert server is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            checks = {check["name"]: check for check in json.loads(run_outbox("doctor", "--json").stdout)}
            took = time.monotonic() - started
        finally:
            os.kill(server.pid, signal.SIGCONT)

    assert [name for name, check in checks.items() if check["ok"] is False] == ["clickhouse"]
    assert f"'kill -9 {server.pid}'" in checks["clickhouse"]["message"]
    assert checks["ledger"]["ok"]
    assert took < 30
