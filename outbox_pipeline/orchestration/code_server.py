"""Dagster's command line for the code server of `outbox up`, with runs that start in half a second instead of four.

Dagster starts each run in a fresh interpreter, which spends most of a small batch's latency, and of its processor time,
on imports. Here runs are forked from a process that has done them once. Invariant: that process opens no connection and
starts no Python thread, so a run shares nothing with another but code. (NumPy's OpenBLAS and Arrow's jemalloc each have
a thread there; both libraries end theirs for a fork and start it again in the child.)

Only on Linux: elsewhere forking after such imports is unsafe, and runs start the slow way.
"""

import multiprocessing
import sys
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

from outbox_pipeline.orchestration.host.instance import DEFINITIONS_MODULE

#: What every run imports: the definitions, the storage, the function a run starts with, and what these import only when
#: they are used.
_PRELOADED = [
    *(DEFINITIONS_MODULE, "dagster_postgres", "dagster._grpc.impl"),
    *("psycopg2", "upath.core", "dagster._core.secrets", "pandera.backends.pandas.builtin_checks"),
]


def fork_runs() -> None:
    """Let this process fork where Dagster asks for a fresh interpreter, and start importing for that at once.

    Dagster's server has no setting for it: it asks `multiprocessing` for "spawn". Its multiprocess executor does offer
    "forkserver", so its code is fit to be forked.
    """
    get_context = multiprocessing.get_context

    def get_forking_context(method: str | None = None) -> BaseContext:
        return get_context("forkserver" if method == "spawn" else method)

    multiprocessing.set_forkserver_preload(_PRELOADED)
    multiprocessing.get_context = get_forking_context  # type: ignore[assignment]
    forkserver.ensure_running()


def keep_python_path() -> None:
    """Let the definitions be imported from all of PYTHONPATH.

    Dagster drops the first entry of `sys.path` for that, which it takes for a script's folder; with -P there is none.
    """
    sys.path.insert(0, sys.path[0])


if __name__ == "__main__":
    keep_python_path()
    if sys.platform == "linux":
        fork_runs()

    from dagster._cli import main

    main()  # type: ignore[no-untyped-call]
