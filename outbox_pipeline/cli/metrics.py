"""The commands `metrics show` and `metrics serve`: the ledger as Prometheus metrics."""

import threading
from typing import Annotated

import typer

from outbox_pipeline.cli.support.engines import ready_settings
from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.up import interruptible
from outbox_pipeline.errors import UsageError

#: Not 9187: postgres_exporter is often there already.
DEFAULT_PORT = 9720


def add_to(app: typer.Typer) -> None:
    """Add the family of commands."""
    family = typer.Typer(
        help="Show the state of the outbox as Prometheus metrics, once or over HTTP.", no_args_is_help=True
    )
    family.command("show")(show)
    family.command("serve")(serve)
    app.add_typer(family, name="metrics")


def show() -> None:
    """Print the metrics once, in Prometheus's text format.

    Exit code 1 when the ledger cannot be read; `outbox_up` is 0 then.

    Example: `outbox metrics show`
    """
    from outbox_pipeline.monitoring.metrics import metrics_text

    with ready_settings(clickhouse=False) as settings:
        text, problem = metrics_text(settings)
    typer.echo(text, nl=False)
    if problem is not None:
        complain(problem)
        raise typer.Exit(1)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes one that is free.", min=0, max=65535)
    ] = DEFAULT_PORT,
) -> None:
    """Serve the metrics over HTTP until interrupted; each scrape reads the ledger once.

    There is no password: let only Prometheus reach the address. While PostgreSQL is away `outbox_up` is 0.
    `/healthz` is for a supervisor: 200 as long as the process answers, and in its body whether the ledger does.

    Example: `outbox metrics serve --host 0.0.0.0 --port 9720`
    """
    from outbox_pipeline.monitoring.metrics import start_server

    if not host:
        raise UsageError("What is given as --host is no address: it is empty.")
    with interruptible(), ready_settings(clickhouse=False) as settings:
        port, stop = start_server(settings, host=host, port=port)
        try:
            typer.echo(f"http://{host}:{port}/metrics")
            typer.echo("Ctrl-C ends it.", err=True)
            threading.Event().wait()
        finally:
            stop()
