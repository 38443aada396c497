"""The entry point `outbox`: the application, its commands, and what happens to errors."""

import sys
from typing import Annotated

import typer

from outbox_pipeline.cli import (
    adopt,
    delivered,
    demo,
    doctor,
    env,
    events,
    init,
    log,
    metrics,
    prune,
    publish,
    quarantine,
    reconcile,
    relay,
    replay,
    resume,
    sql,
    status,
    tail,
    trace,
    up,
)
from outbox_pipeline.cli.support.failures import OutboxGroup, show_defect

#: The module of each command, with an `add_to(app)`, in the order of the help page.
COMMANDS = (
    demo,
    up,
    init,
    env,
    publish,
    events,
    relay,
    resume,
    status,
    tail,
    trace,
    doctor,
    delivered,
    metrics,
    reconcile,
    replay,
    quarantine,
    prune,
    adopt,
    log,
    sql,
)

app = typer.Typer(
    name="outbox",
    cls=OutboxGroup,
    help="Events from PostgreSQL to ClickHouse, exactly once.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"outbox-pipeline {version('outbox-pipeline')}")
        except PackageNotFoundError:
            typer.echo("outbox-pipeline (not installed, running from its source)")
        raise typer.Exit


@app.callback()
def start(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Events from PostgreSQL to ClickHouse, exactly once.

    Settings come from OUTBOX_… variables. Without any, embedded engines keep their data in the folder .outbox.
    """
    sys.excepthook = show_defect


for command in COMMANDS:
    command.add_to(app)

if __name__ == "__main__":
    app()
