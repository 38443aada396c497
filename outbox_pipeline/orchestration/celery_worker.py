"""A Celery worker that does Dagster's runs: `outbox worker`.

It takes broker, result backend and queue from the run launcher of the instance, so that both sides cannot differ, and
sets what a run needs otherwise than Celery's defaults. All that runs import is imported once, before the processes for
runs are forked; these are kept, until one has grown beyond its bound.

Invariants: the worker itself opens no connection to a store or to Dagster's storage, so what it forks shares none; a
task is acknowledged when its run begins, since Dagster ignores a run that is delivered twice, and Celery would count
that as its success; and no task waits in a worker while another one has a place.
"""

import argparse
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster._core.instance.ref import InstanceRef

from outbox_pipeline.errors import ConfigurationError, OutboxError
from outbox_pipeline.logs import configure_logs
from outbox_pipeline.monitoring.celery_launcher import (
    SETTINGS_QUESTION,
    CeleryLauncher,
    read_launcher,
    require_answers,
    require_celery,
)
from outbox_pipeline.monitoring.shared_settings import settings_digest
from outbox_pipeline.orchestration.host.imports import OF_A_RUN, import_all, keep_python_path
from outbox_pipeline.orchestration.host.instance import DEFINITIONS_MODULE
from outbox_pipeline.orchestration.run_tags import name_worker
from outbox_pipeline.settings import Settings, load_settings, shown_url

#: A process with all imports, and what a batch takes beside its text: measured, 560 MB for one of 150 MB.
_IMPORTS_MB = 500
_TIMES_A_BATCH = 4

_OF_CELERY: dict[str, Any] = {
    "worker_disable_prefetch": True,
    "worker_prefetch_multiplier": 1,
    "task_acks_late": False,
    "task_reject_on_worker_lost": False,
    # A run goes on without the broker, which it does not need.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    # For ever: Celery's own 100 times would end the worker in an outage.
    "broker_connection_max_retries": None,
    "broker_connection_retry_on_startup": True,
    # Log lines of runs have their own form.
    "worker_redirect_stdouts": False,
}


def default_memory_mb(settings: Settings) -> int:
    """Return the MB that a process may have held at most to be kept: more than the largest batch makes it hold."""
    return _IMPORTS_MB + _TIMES_A_BATCH * settings.batch_max_bytes // 1_000_000


def work(
    settings: Settings, environment: Mapping[str, str], *, concurrency: int, max_memory_mb: int | None = None
) -> int:
    """Take runs from the broker and do *concurrency* of them at once, until SIGTERM; returns the exit code.

    After SIGTERM it takes no new run, and ends when those under way have ended. A process that has held more than
    *max_memory_mb* is replaced once its run has ended. Raises ConfigurationError that says what is missing.
    """
    require_celery()
    home = _dagster_home(environment)
    launcher = read_launcher(home, environment)
    if launcher is None:
        raise ConfigurationError(
            f"The dagster.yaml in {home} does not start runs by Celery, so no run would come here: give daemon, code "
            "location and workers deploy/dagster/celery.yaml as theirs."
        )
    require_answers(launcher)
    keep_python_path()
    import_all((DEFINITIONS_MODULE, *OF_A_RUN))
    app = _application(home)
    name = f"outbox-{os.getpid()}@{socket.gethostname()}"
    name_worker(name)
    _connect_signals(settings, launcher, concurrency)
    # What was imported stays: a run that looks through it for garbage would copy it.
    gc.collect()
    gc.freeze()
    worker = app.Worker(
        hostname=name,
        queues=[launcher.queue],
        concurrency=concurrency,
        pool="prefork",
        max_memory_per_child=(max_memory_mb or default_memory_mb(settings)) * 1000,
        loglevel=settings.log_level,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _dagster_home(environment: Mapping[str, str]) -> Path:
    home = environment.get("DAGSTER_HOME")
    if not home:
        raise ConfigurationError(
            "DAGSTER_HOME is not set: let it name the folder with the dagster.yaml that daemon and code location have, "
            "deploy/dagster/celery.yaml for one."
        )
    if not Path(home).is_absolute() or not (Path(home) / "dagster.yaml").is_file():
        raise ConfigurationError(f"DAGSTER_HOME is {home}, which is no absolute path of a folder with a dagster.yaml.")
    return Path(home)


def _application(home: Path) -> Any:
    """Return the launcher's Celery application with Dagster's tasks, without opening the instance's storage."""
    from dagster_celery.tasks import create_execute_job_task, create_resume_job_task

    launcher: Any = InstanceRef.from_dir(str(home)).run_launcher
    app = launcher.celery
    app.conf.update(_OF_CELERY)
    create_execute_job_task(app)
    create_resume_job_task(app)
    return app


def _connect_signals(settings: Settings, launcher: CeleryLauncher, concurrency: int) -> None:
    from celery import signals
    from celery.worker.control import inspect_command

    def configure(**_: Any) -> None:
        configure_logs(settings)
        _configure_celerys_logs(settings)

    def tell_ready(sender: Any, **_: Any) -> None:
        print(
            f"Worker {sender.hostname} takes runs from {shown_url(launcher.broker)}, {concurrency} at once.", flush=True
        )

    def tell_ending(how: str, **_: Any) -> None:
        what = "Runs under way end first, and no new one is taken." if how == "Warm" else "Runs under way are given up."
        print(f"Ending. {what}", flush=True)

    def answer_settings(_state: Any) -> dict[str, str]:
        """Digest of the settings that runs here go by."""
        return {"settings": settings_digest(settings)}

    def keep_from_terminal(**_: Any) -> None:
        # Ctrl-C reaches all processes of a terminal's group, and Dagster's handler would break the run off.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    inspect_command(name=SETTINGS_QUESTION)(answer_settings)
    for moment, receiver in (
        (signals.setup_logging, configure),
        (signals.worker_process_init, keep_from_terminal),
        (signals.worker_ready, tell_ready),
        (signals.worker_shutting_down, tell_ending),
    ):
        moment.connect(receiver, weak=False)


def _configure_celerys_logs(settings: Settings) -> None:
    handler = logging.StreamHandler()
    if settings.log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s [%(levelname)s] %(name)s: %(message)s"))
    for name in ("celery", "kombu", "billiard", "multiprocessing"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(settings.log_level)
        logger.propagate = False


class _JsonFormatter(logging.Formatter):
    """A line of Celery's in the form of ours."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the trace of an error in it."""
        trace = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps(
            {
                "event": record.getMessage(),
                "level": record.levelname.lower(),
                "logger": record.name,
                "timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
                **trace,
            }
        )


def main() -> None:
    """Work with the settings of the environment; `outbox up` starts its workers so."""
    options = argparse.ArgumentParser()
    options.add_argument("--concurrency", type=int, required=True)
    given = options.parse_args()
    try:
        sys.exit(work(load_settings(), os.environ, concurrency=given.concurrency))
    except OutboxError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
