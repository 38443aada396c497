"""Folders that no other account reaches: OUTBOX_HOME, and the place of its Unix sockets.

Invariant: the home is its owner's alone, so nothing in it needs a mode of its own; no folder above it is changed.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from outbox_pipeline.errors import ConfigurationError

#: One of these in a folder shows that it has been a home before.
_MARKS = ("lock", "stack.lock")

#: Most bytes in the path of a Unix socket: 103 on macOS, 107 on Linux.
_LONGEST_SOCKET_PATH = 103
#: The longest name that a socket has here; PostgreSQL chooses it.
_LONGEST_SOCKET_NAME = ".s.PGSQL.5432"


def private_home(path: Path) -> None:
    """Make OUTBOX_HOME with mode 0700, or give this mode to an older one.

    Raises ConfigurationError when it cannot be made, belongs to another account, or is a folder with other things in
    it that others may enter, such as a home directory.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_own(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            _close(path)
    except FileExistsError as error:
        raise ConfigurationError(f"OUTBOX_HOME at {path} is a file: set it to a folder.") from error
    except OSError as error:
        raise ConfigurationError(f"OUTBOX_HOME cannot be created at {path}: {error}.") from error


def require_own(home: Path) -> None:
    """Raise ConfigurationError when there is a home and it belongs to another account."""
    with suppress(FileNotFoundError):
        owner = home.stat().st_uid
        if owner != os.geteuid():
            raise ConfigurationError(
                f"OUTBOX_HOME at {home} belongs to another account (uid {owner}): run outbox as that account, or set "
                "OUTBOX_HOME to a folder of your own."
            )


def _close(path: Path) -> None:
    names = {entry.name for entry in path.iterdir()}
    if names and not names & set(_MARKS):
        raise ConfigurationError(
            f"OUTBOX_HOME at {path} is a folder with other things in it that other accounts may enter: set OUTBOX_HOME "
            f"to a folder that does not exist yet, or run: chmod 700 {path}."
        )
    path.chmod(0o700)


def socket_folder(home: Path) -> Path:
    """Return the folder for the home's Unix sockets, with mode 0700; it is made if need be and stays the same.

    It is `run` in the home, or, where that would be too long for the path of a socket, one among the system's
    temporary folders, to which the link `run-elsewhere` in the home leads. Raises ConfigurationError when that is too
    long as well.
    """
    folder, link = home / "run", home / "run-elsewhere"
    if can_hold_socket(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
    if not _is_private(link):
        _lead(link, _temporary_folder())
    return link.readlink()


def known_socket_folder(home: Path) -> Path:
    """Return where the home's sockets are now or would be; makes nothing."""
    folder, link = home / "run", home / "run-elsewhere"
    return link.readlink() if link.is_symlink() and not can_hold_socket(folder) else folder


def can_hold_socket(folder: Path) -> bool:
    """Return whether a socket in this folder can be reached by PostgreSQL's drivers and by gRPC."""
    # A driver would read a comma as the end of the first of several hosts.
    path = os.fsencode(folder / _LONGEST_SOCKET_NAME)
    return len(path) <= _LONGEST_SOCKET_PATH and b"," not in path


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="outbox-"))
    if not can_hold_socket(folder):
        folder.rmdir()
        raise ConfigurationError(
            "The paths of OUTBOX_HOME and of the folder for temporary files are both too long for a Unix socket, or "
            "have a comma: set OUTBOX_HOME or TMPDIR to a shorter one."
        )
    return folder


def _lead(link: Path, target: Path) -> None:
    draft = link.with_suffix(".new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)


def _is_private(link: Path) -> bool:
    # All accounts may write into a folder for temporary files: after a restart the name may be another account's.
    with suppress(OSError):
        status = link.readlink().lstat()
        return (
            stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077
        )
    return False
