"""The commands `quarantine`: look at events that were refused, and decide what becomes of them."""

import typer

from outbox_pipeline.cli.quarantine import look, replace, resolve


def add_to(app: typer.Typer) -> None:
    """Add the family of commands."""
    family = typer.Typer(
        help="Look at events that were refused: deliver them after all, correct them, or give them up.",
        no_args_is_help=True,
    )
    family.command("list")(look.list_events)
    family.command("show")(look.show)
    family.command("requeue")(resolve.requeue)
    family.command("discard")(resolve.discard)
    family.command("replace")(replace.replace)
    app.add_typer(family, name="quarantine")
