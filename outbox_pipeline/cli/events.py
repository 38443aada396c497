"""Commands on the application's own events: `events list` shows the models that contexts are validated with."""

from typing import TYPE_CHECKING, Any

import typer

from outbox_pipeline.cli.support.output import AsJson, print_json, print_table

if TYPE_CHECKING:
    from outbox_pipeline.registry import DescribedModel


def add_to(app: typer.Typer) -> None:
    """Add the family of commands."""
    family = typer.Typer(help="Look at the events that OUTBOX_EVENT_MODULES registers.", no_args_is_help=True)
    family.command("list")(list_models)
    app.add_typer(family, name="events")


def list_models(as_json: AsJson = False) -> None:
    """List registered event types and versions: their models, fields, and where they are defined.

    Connects to nothing. Exit code 1 when a module of OUTBOX_EVENT_MODULES or a model in it cannot serve.

    Example: `outbox events list --json`
    """
    from outbox_pipeline.registry import describe, load_registry
    from outbox_pipeline.settings import load_settings

    modules = load_settings().event_modules or ()
    described = describe(load_registry(modules))
    if as_json:
        print_json([_plain(one) for one in described])
        return
    if not modules:
        typer.echo("OUTBOX_EVENT_MODULES names no modules, so no context is validated with a model.", err=True)
        return
    names = ["type", "version", "model", "fields", "defined in"]
    print_table(
        names, [[one.event_type, one.metadata_version, one.model, _fields(one), one.place] for one in described]
    )


def _fields(one: "DescribedModel") -> str:
    return "\n".join(f"{field.name}: {field.type}{'' if field.is_required else ' (optional)'}" for field in one.fields)


def _plain(one: "DescribedModel") -> dict[str, Any]:
    return {
        "event_type": one.event_type,
        "metadata_version": one.metadata_version,
        "model": one.model,
        "fields": [{"name": field.name, "type": field.type, "required": field.is_required} for field in one.fields],
        "place": one.place,
    }
