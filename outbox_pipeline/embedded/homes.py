"""The folder of the embedded engines: its layout, its lock, and the list of those who use it.

Engines are started and stopped only under the lock, and users enter and leave the list under it too. So two
processes that start at once get one server, and the last user out is known to be the last.
"""

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.folders import private_home
from outbox_pipeline.processes import ProcessIdentity, identify


@dataclass(frozen=True)
class Home:
    """Where one set of embedded engines keeps its data, state and logs."""

    path: Path

    @property
    def postgres_data(self) -> Path:
        """PostgreSQL's data directory, unless root runs it."""
        return self.path / "postgres"

    @property
    def postgres_log(self) -> Path:
        """What PostgreSQL has to say."""
        return self.path / "postgres.log"

    @property
    def server(self) -> Path:
        """Link to the folder of root's PostgreSQL, which is none of the home's (`places`)."""
        return self.path / "server"

    @property
    def clickhouse_data(self) -> Path:
        """ClickHouse's data directory."""
        return self.path / "clickhouse"

    @property
    def clickhouse_state(self) -> Path:
        """Which process serves ClickHouse, and on which port; the port outlives the process."""
        return self.path / "clickhouse.json"

    @property
    def clickhouse_log(self) -> Path:
        """What the ClickHouse server has to say, errors mostly."""
        return self.path / "clickhouse.log"

    @property
    def uploads(self) -> Path:
        """Bodies of inserts while they are received."""
        return self.path / "uploads"

    @property
    def users(self) -> Path:
        """One file for each use of the engines."""
        return self.path / "users"

    def create(self) -> None:
        """Create the folders that are missing, for this account alone.

        Raises ConfigurationError when the path cannot be written, belongs to another account, holds other things that
        others may read, or could be read as a pattern by ClickHouse.
        """
        if set("*?{}") & set(str(self.path)):
            raise ConfigurationError(f"OUTBOX_HOME must not contain any of * ? {{ }}: {self.path}.")
        private_home(self.path)
        try:
            for folder in (self.users, self.uploads):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"OUTBOX_HOME cannot be created at {self.path}: {error}.") from error


@contextmanager
def locked(home: Home, *, wait: bool = True) -> Iterator[bool]:
    """Hold the home's lock; without *wait*, yield False at once when another process holds it."""
    descriptor = os.open(home.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield _lock(descriptor, wait=wait)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def add_user(home: Home) -> Path:
    """Put this process on the list once more and return the entry; call it under the lock."""
    me = identify(os.getpid())
    if me is None:
        raise ConfigurationError("The embedded engines need to see their own process; is /proc mounted?")
    entry = home.users / f"{me.pid}-{me.mark}-{uuid.uuid4().hex[:8]}"
    entry.touch()
    return entry


def live_users(home: Home) -> list[Path]:
    """Return the entries of processes that live; entries of dead ones are removed."""
    if not home.users.is_dir():
        return []
    entries = list(home.users.iterdir())
    alive = [entry for entry in entries if _is_alive(entry)]
    for entry in set(entries) - set(alive):
        with suppress(FileNotFoundError):
            entry.unlink()
    return alive


def _is_alive(entry: Path) -> bool:
    pid, _, rest = entry.name.partition("-")
    return pid.isdigit() and ProcessIdentity(int(pid), rest.rpartition("-")[0]).is_alive()
