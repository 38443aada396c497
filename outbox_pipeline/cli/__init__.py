"""The command line: thin callers of the procedures, a module a command, with its name.

Results go to stdout, messages to stderr; the exit code is 0 when it worked, 1 when it failed, 2 for wrong use. Modules
here import nothing heavy at their top, so that `outbox --help` answers at once.
"""

import sys
from importlib.util import find_spec

#: What commands import first of what the extra brings.
_OF_THE_EXTRA = ("typer", "rich", "structlog", "psycopg", "clickhouse_connect")


def run() -> None:
    """Be the command `outbox`, which an install that only publishes has too, but not what it needs."""
    # An application may have some of them of its own: a command would then begin, and end in a traceback.
    missing = next((name for name in _OF_THE_EXTRA if not _is_installed(name)), None)
    if missing is not None:
        sys.exit(
            f"The command outbox needs the extra 'pipeline', because {missing} is not installed: install "
            "outbox-pipeline[pipeline], or outbox-pipeline[embedded] to have the engines on this machine too."
        )
    from outbox_pipeline.cli.main import app

    app()


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:
        return False
