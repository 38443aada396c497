"""The account that PostgreSQL runs as where outbox is run by root, which PostgreSQL refuses to be run by."""

import fcntl
import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outbox_pipeline.errors import ConfigurationError

_NAME = "pgserver"


@dataclass(frozen=True)
class Account:
    """An account of this machine."""

    name: str
    uid: int
    gid: int

    def own(self, path: Path) -> None:
        """Give it *path* itself; what a link leads to stays whose it is."""
        os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def own_all(self, folder: Path) -> None:
        """Give it *folder* and everything in it."""
        self.own(folder)
        for root, folders, files in os.walk(folder):
            for name in (*folders, *files):
                self.own(Path(root) / name)


def server_account() -> Account | None:
    """Return the account for PostgreSQL, made if it is missing; None where outbox is not run by root.

    Raises ConfigurationError when it cannot be made.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_NAME)
    except KeyError:
        entry = _made_once()
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _made_once() -> pwd.struct_passwd:
    # Two useradd at once: one is refused, or takes back the number that the other has given out.
    folder = os.open("/etc", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            return pwd.getpwnam(_NAME)
        except KeyError:
            return _created()
    finally:
        os.close(folder)


def _created() -> pwd.struct_passwd:
    # Without a password, a shell and a home, so it cannot log in.
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", _NAME]
    try:
        subprocess.run(command, check=True, capture_output=True)
        return pwd.getpwnam(_NAME)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        raise ConfigurationError(
            f"PostgreSQL refuses to be run by root, and its account {_NAME} cannot be made with useradd: run outbox as "
            "another account, or set OUTBOX_POSTGRES_URL."
        ) from error


def run_as(account: Account | None) -> dict[str, Any]:
    """Return what `subprocess` needs to run a program as *account*; nothing for None."""
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}
