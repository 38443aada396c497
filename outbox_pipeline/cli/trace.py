"""The command `trace`: where one event is, and how it got there."""

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from outbox_pipeline.cli.support.engines import ledger_engine, ready_settings
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, shown
from outbox_pipeline.names import shortened

if TYPE_CHECKING:
    from outbox_pipeline.monitoring.trace import Trace
    from outbox_pipeline.settings import Settings


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("trace")(trace)


def trace(
    event_id: Annotated[UUID, typer.Argument(help="The event's id, a UUID.")],
    as_json: AsJson = False,
) -> None:
    """Show one event's life: its stations with links to their runs, its row in ClickHouse or why there is none.

    Links need OUTBOX_DAGSTER_UI_URL, or an 'outbox up' on this home. Exit code 1 when neither side knows the event.

    Example: `outbox trace 412d8176-416a-5d43-8b59-333d72dce3f0`
    """
    from outbox_pipeline.monitoring.trace import trace_event

    with ready_settings() as settings:
        settings = _with_ui(settings)
        found = trace_event(ledger_engine(settings), settings, event_id)
    if as_json:
        print_json(found)
    else:
        print_facts(_facts(found))
    if not found.is_known:
        raise typer.Exit(1)


def _with_ui(settings: "Settings") -> "Settings":
    from outbox_pipeline.orchestration.host.stack import running_stack

    if settings.dagster_ui_url is not None:
        return settings
    return settings.model_copy(update={"dagster_ui_url": running_stack(settings.home)})


def _facts(found: "Trace") -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("event", found.event_id),
        ("status", found.status),
        ("", found.explanation),
    ]
    if found.event is not None:
        facts += [
            (_label(name), shortened(value) if isinstance(value, str) else value)
            for name, value in vars(found.event).items()
        ]
    if found.batch is not None:
        facts += [(f"batch {_label(name.removeprefix('batch_'))}", value) for name, value in vars(found.batch).items()]
    if found.reasons:
        facts.append(("reasons", ", ".join(found.reasons)))
    for row in found.rows or []:
        where = f"batch {row.batch_id}, generation {row.generation}, loaded {shown(row.loaded_at)}"
        facts.append(("in ClickHouse", where))
    for station in found.stations:
        facts.append((shown(station.at), " ".join(filter(None, [station.what, station.run_url or station.runs_url]))))
    return facts


def _label(name: str) -> str:
    return name.removesuffix("_at").replace("_", " ")
