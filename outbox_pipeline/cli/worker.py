"""The command `worker`: do Dagster's runs as a worker of Celery."""

import os
from typing import Annotated

import typer

from outbox_pipeline.errors import ConfigurationError


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("worker")(worker)


def worker(
    concurrency: Annotated[int, typer.Option(help="Runs that this worker does at once, each in a process.", min=1)] = 4,
    max_memory: Annotated[
        int | None,
        typer.Option(
            help="MB that a process may have held to be kept for the next run, else it is replaced once its run has "
            "ended. Without it 500 MB and four times OUTBOX_BATCH_MAX_BYTES.",
            min=1,
        ),
    ] = None,
) -> None:
    """Do Dagster's runs as a Celery worker, where dagster.yaml has Celery's run launcher.

    Broker, result backend and queue are those of the dagster.yaml in DAGSTER_HOME, as deploy/dagster/celery.yaml has
    them. Needs the extra celery, and the environment of the code location. SIGTERM, or Ctrl-C, ends it once the runs
    under way have ended; a second Ctrl-C gives these up, as a kill does, and other attempts deliver their batches when
    the lease is over.

    Example: `outbox worker --concurrency 4`
    """
    from outbox_pipeline.cli.support.engines import given_urls
    from outbox_pipeline.monitoring.celery_launcher import require_celery
    from outbox_pipeline.settings import load_settings

    require_celery()
    settings = load_settings()
    missing = given_urls(settings)[1]
    if missing:
        raise ConfigurationError(f"{' and '.join(missing)} not set: a worker's runs need the code location's URLs.")
    from outbox_pipeline.orchestration.celery_worker import work

    raise typer.Exit(work(settings, os.environ, concurrency=concurrency, max_memory_mb=max_memory))
