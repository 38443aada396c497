"""What Dagster's processes import, by name: once for all of them under `outbox up`, once for all runs of a code server.

Invariant: nothing named here reads a setting or opens a connection when it is imported, so that it may be imported
before either is known.
"""

import importlib
import sys
from collections.abc import Iterable
from contextlib import suppress

#: What a run imports beside the definitions: the storage, the function a run starts with, and what these import only
#: when they are used.
OF_A_RUN = (
    *("dagster_postgres", "dagster._grpc.impl", "psycopg2", "upath.core", "dagster._core.secrets"),
    "pandera.backends.pandas.builtin_checks",
)

#: What the definitions import from the floors below; they themselves read settings.
OF_THE_DEFINITIONS = (
    *("outbox_pipeline.relay.delivery", "outbox_pipeline.relay.tick", "outbox_pipeline.monitoring.health"),
    *("outbox_pipeline.monitoring.clickhouse_state", "outbox_pipeline.monitoring.shared_settings"),
    *("outbox_pipeline.folders", "outbox_pipeline.monitoring.incidents", "outbox_pipeline.monitoring.webhook"),
    *("outbox_pipeline.operations.completeness", "outbox_pipeline.operations.quarantine"),
    *("outbox_pipeline.operations.reconcile.repair", "outbox_pipeline.operations.resume"),
    "outbox_pipeline.operations.retention",
)

#: Dagster's commands: code server, daemon and webserver.
OF_THE_COMMANDS = ("dagster._cli", "dagster._daemon.cli", "dagster_webserver.cli", "dagster_webserver.app")


def import_all(names: Iterable[str]) -> None:
    """Import each module; one that cannot be imported is left to those who need it, and who say so."""
    for name in names:
        with suppress(Exception):
            importlib.import_module(name)


def keep_python_path() -> None:
    """Let the definitions be imported from all of PYTHONPATH.

    Dagster drops the first entry of `sys.path` for that, which it takes for a script's folder; with -P there is none.
    """
    if sys.flags.safe_path:
        sys.path.insert(0, sys.path[0])
