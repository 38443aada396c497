"""The command line: thin callers of the procedures, a module a command, with its name.

Results go to stdout, messages to stderr; the exit code is 0 when it worked, 1 when it failed, 2 for wrong use. Modules
here import nothing heavy at their top, so that `outbox --help` answers at once.
"""

import sys


def run() -> None:
    """Be the command `outbox`, which an install that only publishes has too, but not what it needs."""
    try:
        from outbox_pipeline.cli.main import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", __package__.partition(".")[0]):
            raise
        sys.exit(
            f"The command outbox needs the extra 'pipeline', because {missing} is not installed: install "
            "outbox-pipeline[pipeline], or outbox-pipeline[embedded] to have the engines on this machine too."
        )
    app()
