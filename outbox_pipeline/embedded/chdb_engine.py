"""The ClickHouse engine of this process: its connections, sessions and running queries.

Nothing calls chDB but in a thread that is shut off from the machine (`confined`), on a connection that has no other
rights than those of `rights`. chDB isolates settings, temporary tables and parameters by connection. So every request
gets a connection of its own (a session keeps one between requests) and SQL never has to be rewritten to carry settings.
A connection on which nothing but a query was run to its end is kept for the next request with the same settings: to
make one like it takes as long as a small query. Its queries are found by a name of its own, which it keeps.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from outbox_pipeline.embedded.confinement import confinement
from outbox_pipeline.embedded.rights import CONFIGURATION_FILE, quoted, write_configuration
from outbox_pipeline.embedded.server_errors import (
    SESSION_IS_LOCKED,
    SESSION_NOT_FOUND,
    TOO_MANY_SIMULTANEOUS_QUERIES,
    UNKNOWN_SETTING,
    ServerError,
    from_engine,
)

#: A setting without effect that `system.processes` shows, so a query is found by its connection's name.
NAME_SETTING = "chdb_client_name"

#: Connections that are kept for requests without a session, whatever their settings.
_MOST_KEPT = 32

#: Sessions at once; with a temporary table in each they take 60 MB.
MAX_SESSIONS = 500

T = TypeVar("T")

_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


@dataclass(frozen=True)
class Scope:
    """Under what a statement runs: session, database, settings, and the id its request is known by."""

    request_id: str
    database: str | None = None
    settings: dict[str, str] = field(default_factory=dict)
    session_id: str | None = None
    session_seconds: float = 60
    session_must_exist: bool = False


@dataclass
class Loan:
    """A connection set up for a request; `is_unchanged` once nothing but a query was run on it, to its end.

    `is_killed`: an order to stop its query is on its way, which must not reach the next request's.
    """

    connection: Any
    name: str
    is_unchanged: bool = False
    is_killed: bool = False
    #: How often the kept connections had been forgotten when this one was lent.
    forgotten: int = 0


#: The database and the settings that a kept connection has.
_Setup = tuple[str | None, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class _Kept:
    """A connection without a request, and the name under which its queries run."""

    setup: _Setup
    connection: Any
    name: str


@dataclass
class _Session:
    connection: Any
    busy: threading.Lock
    expires_at: float = 0


class Engine:
    """The engine on one data directory; it stays open until `close`, whatever connections come and go."""

    def __init__(self, path: Path, *, uploads: Path, more_grants: Sequence[str] = ()) -> None:
        """Open *path*; raises ServerError when another process holds it.

        The calling thread is confined from then on, and this process works in the configuration's folder. With
        *more_grants*, which may be rights to files or servers, no thread is confined.
        """
        configuration = write_configuration(path, uploads=uploads, more_grants=more_grants)
        os.chdir(configuration)
        self._path = f"{path}?config-file={CONFIGURATION_FILE}"
        self._confinement = None if more_grants else confinement([path, uploads])
        self._chdb = self.confined(partial(_load, configuration))
        self._root = self._connect()
        self._sessions: dict[str, _Session] = {}
        self._kept: list[_Kept] = []
        self._lent: dict[str, Loan] = {}
        self._forgotten = 0
        self._guard = threading.Lock()
        self.version, self.timezone = self.ask("SELECT version(), timezone()").decode().rstrip("\n").split("\t")

    def confined(self, call: Callable[[], T]) -> T:
        """Return what *call* returns, made in this thread, which is shut off from the machine before."""
        if self._confinement is not None:
            self._confinement.apply()
        return call()

    @contextmanager
    def connection(self, scope: Scope) -> Iterator[Loan]:
        """Lend a connection set up for *scope*; afterwards only a session's own changes stay with it."""
        if scope.session_id is not None:
            with self._of_session(scope.session_id, scope) as connection:
                loan = Loan(connection, scope.request_id)
                with self._known_as(scope.request_id, loan):
                    _set_up(connection, scope, loan.name)
                    yield loan
            return
        setup = (scope.database, frozenset(scope.settings.items()))
        # Before a kept one is taken: what is forgotten from then on was no longer among those.
        forgotten = self._forgotten
        kept = self._take_kept(setup)
        loan = Loan(kept and kept.connection, kept.name if kept else scope.request_id, forgotten=forgotten)
        try:
            with self._known_as(scope.request_id, loan):
                if loan.connection is None:
                    loan.connection = self._connect()
                    _set_up(loan.connection, scope, loan.name)
                yield loan
        finally:
            if loan.connection is not None:
                self._give_back(loan, setup)

    def forget_kept(self) -> None:
        """Close the connections that are kept, now or once their requests end: what they are for may be gone."""
        with self._guard:
            kept, self._kept = self._kept, []
            self._forgotten += 1
        for each in kept:
            each.connection.close()

    def ask(self, query: str, parameters: dict[str, str] | None = None) -> bytes:
        """Answer *query* on a connection of its own, as tab separated text."""
        connection = self._connect()
        try:
            return run(connection, query, parameters=parameters).bytes()  # type: ignore[no-any-return]
        finally:
            connection.close()

    def kill(self, request_id: str) -> None:
        """Ask the query of this request to stop; it then fails with QUERY_WAS_CANCELLED."""
        with self._guard:
            loan = self._lent.get(request_id)
            if loan is None:
                return
            loan.is_killed = True
        self.ask(
            f"KILL QUERY WHERE Settings['{NAME_SETTING}'] = {{name:String}} ASYNC",
            parameters={"name": loan.name},
        )

    def kill_all(self) -> None:
        """Ask every query of a request to stop."""
        self.ask(f"KILL QUERY WHERE mapContains(Settings, '{NAME_SETTING}') ASYNC")

    def close(self) -> None:
        """Close the sessions and the engine; what was inserted is in its files."""
        self.forget_kept()
        with self._guard:
            for session in self._sessions.values():
                session.connection.close()
            self._sessions.clear()
        self._root.close()

    def _connect(self) -> Any:
        try:
            return self._chdb.connect(self._path)
        except RuntimeError as error:
            raise from_engine(error) from error

    @contextmanager
    def _known_as(self, request_id: str, loan: Loan) -> Iterator[None]:
        with self._guard:
            self._lent[request_id] = loan
        try:
            yield
        finally:
            with self._guard:
                del self._lent[request_id]

    def _take_kept(self, setup: _Setup) -> _Kept | None:
        with self._guard:
            at = next((at for at in reversed(range(len(self._kept))) if self._kept[at].setup == setup), None)
            return None if at is None else self._kept.pop(at)

    def _give_back(self, loan: Loan, setup: _Setup) -> None:
        too_old = loan.connection
        with self._guard:
            if loan.is_unchanged and not loan.is_killed and loan.forgotten == self._forgotten:
                self._kept.append(_Kept(setup, loan.connection, loan.name))
                too_old = self._kept.pop(0).connection if len(self._kept) > _MOST_KEPT else None
        if too_old is not None:
            too_old.close()

    @contextmanager
    def _of_session(self, session_id: str, scope: Scope) -> Iterator[Any]:
        session = self._take_session(session_id, scope)
        try:
            with _settings_restored(session.connection, scope):
                yield session.connection
        finally:
            session.expires_at = time.monotonic() + scope.session_seconds
            session.busy.release()

    def _take_session(self, session_id: str, scope: Scope) -> _Session:
        with self._guard:
            self._drop_expired()
            session = self._sessions.get(session_id)
            if session is None and scope.session_must_exist:
                raise ServerError(SESSION_NOT_FOUND, f"Session {session_id} not found. (SESSION_NOT_FOUND)")
            if session is None:
                self._require_room()
                session = self._sessions[session_id] = _Session(self._connect(), threading.Lock())
            if not session.busy.acquire(blocking=False):
                raise ServerError(
                    SESSION_IS_LOCKED,
                    f"Session {session_id} is locked by a concurrent client. (SESSION_IS_LOCKED)",
                )
            return session

    def _require_room(self) -> None:
        if len(self._sessions) >= MAX_SESSIONS:
            raise ServerError(
                TOO_MANY_SIMULTANEOUS_QUERIES,
                f"Too many sessions, maximum: {MAX_SESSIONS}. Send no session_id where no session is needed"
                " (autogenerate_session_id=False in clickhouse-connect), or a shorter session_timeout."
                " (TOO_MANY_SIMULTANEOUS_QUERIES)",
            )

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for session_id, session in list(self._sessions.items()):
            if not session.busy.locked() and session.expires_at < now:
                session.connection.close()
                del self._sessions[session_id]


def _load(scratch: Path) -> Any:
    # Not with this module: chDB starts threads when it is loaded, so the loading one must be confined. It also makes a
    # folder for temporary files, which a confined thread can do only in the data's.
    with _temporary_files_in(scratch):
        import chdb
        from chdb import _chdb

    # Otherwise the engine would take SIGTERM and SIGINT for itself.
    _chdb.set_signal_handlers_enabled(0)  # type: ignore[attr-defined]  # missing in chDB's stubs
    return chdb


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let libraries make temporary files in *folder* during the block."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before


def run(connection: Any, query: str, *, output: str = "TabSeparated", parameters: dict[str, str] | None = None) -> Any:
    """Run *query* to its end and return chDB's result; raises ServerError."""
    try:
        return connection.query(query, output, params=parameters or {})
    except (RuntimeError, UnicodeDecodeError) as error:
        raise from_engine(error) from error


def _set_up(connection: Any, scope: Scope, name: str) -> None:
    if scope.database:
        run(connection, f"USE {_identifier(scope.database)}")
    run(connection, f"SET {_assignments({**scope.settings, NAME_SETTING: name})}")


@contextmanager
def _settings_restored(connection: Any, scope: Scope) -> Iterator[None]:
    """Give a session back the settings and database it had: those of a request are not the session's."""
    names = [*scope.settings, NAME_SETTING]
    database = run(connection, "SELECT currentDatabase()", output="TSVRaw").bytes().decode().rstrip("\n")
    changed = _changed_settings(connection, names)
    try:
        yield
    finally:
        values = {name: quoted(changed[name]) if name in changed else "DEFAULT" for name in names}
        run(connection, "SET " + ", ".join(f"{name} = {value}" for name, value in values.items()))
        if scope.database:
            run(connection, f"USE {_identifier(database)}")


def _changed_settings(connection: Any, names: list[str]) -> dict[str, str]:
    rows = run(
        connection,
        "SELECT name, value FROM system.settings WHERE changed AND has({names:Array(String)}, name)",
        output="JSONCompactEachRow",
        parameters={"names": "[" + ", ".join(quoted(name) for name in names) + "]"},
    )
    return dict(json.loads(row) for row in rows.bytes().splitlines())


def _assignments(settings: dict[str, str]) -> str:
    for name in settings:
        if not _SETTING_NAME.fullmatch(name):
            raise ServerError(UNKNOWN_SETTING, f"Unknown setting '{name}'. (UNKNOWN_SETTING)")
    return ", ".join(f"{name} = {quoted(value)}" for name, value in settings.items())


def _identifier(name: str) -> str:
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
