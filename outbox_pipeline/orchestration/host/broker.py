"""A Redis for `outbox up --runs celery`, as Celery's broker and result backend.

Who reaches a broker can start runs, so it listens on a Unix socket in a folder that no other account may enter, and on
no port. Invariant: it does not outlive what has started it; a supervisor that is killed takes it along. What waits in
it is on disk, so one that is started again has it still.
"""

import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path
from urllib.parse import quote

from outbox_pipeline.errors import ConfigurationError

BROKER_MODULE = "outbox_pipeline.orchestration.host.broker"
_PROGRAM = "redis-server"
_PR_SET_PDEATHSIG = 1


def require_program() -> None:
    """Raise ConfigurationError when there is no program to run a broker with."""
    if shutil.which(_PROGRAM) is None:
        raise ConfigurationError(
            "Celery needs a broker, and redis-server is not installed: apt-get install redis-server, or set "
            "OUTBOX_CELERY_BROKER and OUTBOX_CELERY_BACKEND to those that you have."
        )


def broker_environment(at: Path) -> dict[str, str]:
    """Return the variables that lead to a broker on the socket *at*."""
    url = f"redis+socket://{quote(str(at))}?virtual_host="
    return {"OUTBOX_CELERY_BROKER": f"{url}0", "OUTBOX_CELERY_BACKEND": f"{url}1"}


def broker_command(at: Path, folder: Path) -> list[str]:
    """Return what follows `python -m` for a broker on the socket *at* that keeps its data in *folder*."""
    return [BROKER_MODULE, str(at), str(folder)]


def main(at: Path, folder: Path) -> None:
    """Become the server."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    folder.mkdir(mode=0o700, exist_ok=True)
    at.unlink(missing_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(at),
        "unixsocketperm": "700",
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
    }
    os.execvp(_PROGRAM, [_PROGRAM, *(word for name, value in options.items() for word in (f"--{name}", value))])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
