"""The entry point `outbox`: the application, its commands, and what happens to errors."""

import os
import sys
from types import ModuleType
from typing import Annotated, Any

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
    worker,
)
from outbox_pipeline.cli.support.failures import OutboxGroup, show_defect, warn

#: The module of each command, with an `add_to(app)`, by the panels of the help page and in its order.
PANELS = {
    "Try": (demo, up, env),
    "Publish": (init, publish, events),
    "Run": (relay, worker, resume, prune, metrics),
    "Look": (status, tail, trace, doctor, delivered, sql),
    "Repair": (quarantine, reconcile, replay, adopt, log),
}
COMMANDS = tuple(command for commands in PANELS.values() for command in commands)


def _name(command: ModuleType) -> str:
    return command.__name__.rpartition(".")[2]


class Commands(OutboxGroup):
    """The commands in the order of the help page."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return their names."""
        order = [_name(command) for command in COMMANDS]
        return sorted(super().list_commands(ctx), key=order.index)


app = typer.Typer(
    name="outbox",
    cls=Commands,
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


def _warn_of_misspelt(command: str | None) -> None:
    # The doctor has a check for it. Without a variable that may be one, the settings need not be known.
    if command == "doctor" or not any(name.startswith("OUTBOX_") for name in os.environ):
        return
    from outbox_pipeline.settings import misspelt_settings

    misspelt = [f"{name} (did you mean {meant}?)" for name, meant in misspelt_settings(os.environ).items()]
    if misspelt:
        warn(f"Ignored, because it is no setting: {', '.join(misspelt)}")


@app.callback()
def start(
    ctx: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Events from PostgreSQL to ClickHouse, exactly once.

    Settings come from OUTBOX_… variables. Without any, embedded engines keep their data in the folder .outbox.
    """
    sys.excepthook = show_defect
    _warn_of_misspelt(ctx.invoked_subcommand)


for panel, commands in PANELS.items():
    for command in commands:
        command.add_to(app)
    names = [_name(command) for command in commands]
    for single in app.registered_commands:
        single.rich_help_panel = panel if single.name in names else single.rich_help_panel
    for family in app.registered_groups:
        family.rich_help_panel = panel if family.name in names else family.rich_help_panel

if __name__ == "__main__":
    app()
