"""The command `trace`: where one event is, and how it got there."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from outbox_pipeline.cli.support.engines import ledger_engine, ready_settings
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, shown, strong
from outbox_pipeline.logs import escaped
from outbox_pipeline.names import shortened

if TYPE_CHECKING:
    from outbox_pipeline.monitoring.trace import Trace
    from outbox_pipeline.settings import Settings

#: Of a batch what is among the links.
_LINKED = ("run_id", "run_url", "runs_url")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("trace")(trace)


def trace(
    event_id: Annotated[UUID, typer.Argument(help="The event's id, a UUID.")],
    with_context: Annotated[
        bool, typer.Option("--context", help="Show the event's content too; nothing shows it otherwise.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show one event's life: its stations with links to their runs, its row in ClickHouse or why there is none.

    Links need OUTBOX_DAGSTER_UI_URL, or an 'outbox up' on this home. Exit code 1 when neither side knows the event.

    Example: `outbox trace "$(outbox sql 'SELECT event_id FROM event_log LIMIT 1')"`
    """
    from outbox_pipeline.monitoring.trace import trace_event

    with ready_settings() as settings:
        settings = _with_ui(settings)
        found = trace_event(ledger_engine(settings), settings, event_id, with_context=with_context)
    if as_json:
        fields = asdict(found)
        if not with_context:
            del fields["context"]
        print_json(fields)
    else:
        _show(found)
    if not found.is_known:
        raise typer.Exit(1)


def _with_ui(settings: "Settings") -> "Settings":
    from outbox_pipeline.orchestration.host.stack import running_stack

    if settings.dagster_ui_url is not None:
        return settings
    return settings.model_copy(update={"dagster_ui_url": running_stack(settings.home)})


def _show(found: "Trace") -> None:
    print_facts(_facts(found))
    if found.context is not None:
        typer.echo(f"\n{strong('content')}\n{escaped(found.context, besides=chr(10))}")
    if found.stations:
        typer.echo("")
        print_facts([(shown(station.at), _without_id(station.what, found)) for station in found.stations])
    if links := _links(found):
        typer.echo("")
        print_facts(links)


def _facts(found: "Trace") -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [("event", found.event_id), ("status", found.status), ("", found.explanation)]
    if found.event is not None:
        facts += [
            (_label(name), shortened(value) if isinstance(value, str) else value)
            for name, value in vars(found.event).items()
        ]
    if found.batch is not None:
        batch = vars(found.batch).items()
        facts += [(_of_batch(name), value) for name, value in batch if name not in _LINKED]
    if found.reasons:
        facts.append(("reasons", ", ".join(found.reasons)))
    for row in found.rows or []:
        other = found.batch is None or row.batch_id != found.batch.batch_id
        batch_id = f"batch {row.batch_id}, " if other else ""
        facts.append(("in ClickHouse", f"{batch_id}generation {row.generation}, loaded {shown(row.loaded_at)}"))
    return facts


def _without_id(what: str, found: "Trace") -> str:
    """Return a station without the id of the event's batch, which stands above."""
    return what if found.batch is None else what.replace(f"into batch {found.batch.batch_id}", "into the batch")


def _links(found: "Trace") -> list[tuple[str, object]]:
    """Return each address once, named by the run or the batch that it shows."""
    links: dict[str, str] = {}
    for station in found.stations:
        if station.run_url:
            links.setdefault(station.run_url, f"run {station.run_id}")
        if station.runs_url:
            is_here = found.batch is not None and station.batch_id == found.batch.batch_id
            links.setdefault(station.runs_url, "all runs" if is_here else f"runs of batch {station.batch_id}")
    return [(name, url) for url, name in links.items()]


def _of_batch(name: str) -> str:
    return "batch" if name == "batch_id" else f"batch {_label(name)}"


def _label(name: str) -> str:
    return name.removesuffix("_at").replace("_", " ")
