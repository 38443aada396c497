"""Shut the engine's threads off from the rest of the machine, where the kernel can: Linux with Landlock.

Grants are asked for by most of ClickHouse's ways to files and servers, not by all: the scalar function `file` asks for
none. A thread that is confined reads and writes the engine's own folders, reads what Python and the engine are made
of, and opens no TCP connection; so does every thread that it starts. The others, which watch the home and stop
PostgreSQL, stay free: so whatever calls the engine must do so in a confined thread.
https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import os
import site
import struct
import sys
import threading
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

# The numbers are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_NO_NEW_PRIVILEGES = 38

#: File system rights that each version of the interface knows: with the second files may be renamed across folders.
_KNOWN_RIGHTS = {2: 14, 3: 15, 4: 15, 5: 16}
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_EXECUTE, _MAKE_CHARACTER_DEVICE, _MAKE_BLOCK_DEVICE = 1 << 0, 1 << 6, 1 << 11
#: What may be done to a file; other rights are about folders.
_OF_FILES = _EXECUTE | 1 << 1 | _READ_FILE | 1 << 14 | 1 << 15
_CONNECT_AND_BIND = 3

#: Beside what Python loads: time zones, shared libraries that are loaded late, what the machine has to offer.
_READABLE = ("/usr/lib", "/usr/share", "/lib", "/lib64", "/etc/localtime", "/proc", "/sys", "/dev/urandom")


class Confinement:
    """The walls, made once and put around each thread that calls `apply`."""

    def __init__(self, writable: Iterable[Path]) -> None:
        """Leave confined threads *writable* and what they must read; raises OSError when the kernel has no Landlock."""
        self._applied = threading.local()
        self._system = ctypes.CDLL(None, use_errno=True)
        version = self._call(_CREATE_RULESET, None, 0, _VERSION_FLAG)
        known = _KNOWN_RIGHTS[min(version, max(_KNOWN_RIGHTS))] if version > 1 else 0
        if not known:
            raise OSError("This kernel's Landlock is too old.")
        self._handled = (1 << known) - 1
        attributes = struct.pack("=QQ", self._handled, _CONNECT_AND_BIND)
        size = 16 if version > 3 else 8
        self._rules = self._call(_CREATE_RULESET, attributes, size, 0)
        for path in writable:
            self._allow(path, self._handled & ~(_EXECUTE | _MAKE_CHARACTER_DEVICE | _MAKE_BLOCK_DEVICE))
        for path in (*_module_folders(), *map(Path, _READABLE)):
            self._allow(path, _READ_FILE | _READ_FOLDER)

    def apply(self) -> None:
        """Confine this thread and those it starts from now on, unless it is."""
        if getattr(self._applied, "is_done", False):
            return
        if self._system.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "A thread cannot give up privileges.")
        self._call(_RESTRICT_SELF, self._rules, 0)
        self._applied.is_done = True

    def _allow(self, path: Path, rights: int) -> None:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            allowed = rights if path.is_dir() else rights & _OF_FILES
            self._call(_ADD_RULE, self._rules, _RULE_PATH_BENEATH, struct.pack("=Qi", allowed, descriptor), 0)
        finally:
            os.close(descriptor)

    def _call(self, number: int, *arguments: object) -> int:
        result: int = self._system.syscall(ctypes.c_long(number), *arguments)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result


def _module_folders() -> list[Path]:
    # Not all of sys.path: a folder of PYTHONPATH may be a project, with its settings.
    engine = find_spec("chdb")
    found = [Path(engine.origin).parents[1]] if engine is not None and engine.origin else []
    return [*found, Path(os.__file__).parent, *map(Path, [*site.getsitepackages(), site.getusersitepackages()])]


def confinement(writable: Iterable[Path]) -> Confinement | None:
    """Return walls around *writable*, None where the system has none to give."""
    if sys.platform != "linux":
        return None
    try:
        return Confinement(writable)
    except OSError:
        return None
