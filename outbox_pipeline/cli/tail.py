"""The command `tail`: the events that are delivered from now on."""

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from outbox_pipeline.cli.support.engines import ledger_engine, ready_settings
from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.support.output import AsJson, print_json, shown, strong, until_interrupted
from outbox_pipeline.cli.support.texts import in_utf8
from outbox_pipeline.counts import counted
from outbox_pipeline.names import shortened

if TYPE_CHECKING:
    from outbox_pipeline.batches import MarkedBatch
    from outbox_pipeline.monitoring.tail import DeliveredEvent, Told

#: Events of one batch that a person is shown.
_SHOWN_EVENTS = 1_000


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tail")(tail)


def _types_in_utf8(types: list[str] | None) -> list[str]:
    return [in_utf8(one) or "" for one in types or []]


def tail(
    types: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer shows the bare type in its usage line
        typer.Option(
            "--type", metavar="TYPE", help="Only events of this type; may be repeated.", callback=_types_in_utf8
        ),
    ] = None,
    with_context: Annotated[
        bool, typer.Option("--context", help="Show the content of each event too; nothing shows it otherwise.")
    ] = False,
    max_events: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--max-events",
            min=0,
            metavar="COUNT",
            help="Most events shown of one batch, 0 for all: 1,000 when left out, all with --json.",
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, max=3600, metavar="SECONDS", help="Pause between two looks.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Show events as they are delivered: batches in the order of their marks, with the rows that ClickHouse has.

    Begins with what is marked from now on, goes on through outages of either server, and ends with Ctrl-C. With --json
    each event is one line. A batch that is delivered again is shown again. It only reads.

    Example: `outbox tail --type order_placed`
    """
    from outbox_pipeline.monitoring.tail import DeliveredEvent, Wanted, follow

    if max_events is None and not as_json:
        max_events = _SHOWN_EVENTS
    wanted = Wanted(frozenset(types or ()), max_events or None, with_context)
    with until_interrupted(), ready_settings() as settings:
        for told in follow(ledger_engine(settings), settings, wanted, interval_seconds=interval):
            if as_json and isinstance(told, DeliveredEvent):
                print_json(_fields(told, with_context=with_context))
            else:
                _show(told, as_json=as_json)


def _fields(event: "DeliveredEvent", *, with_context: bool) -> dict[str, Any]:
    fields = dict(vars(event))
    if not with_context:
        del fields["event_context"]
    return fields


def _show(told: "Told", *, as_json: bool) -> None:
    from outbox_pipeline.batches import MarkedBatch
    from outbox_pipeline.monitoring.tail import More, Outage

    if isinstance(told, Outage) and told.said:
        complain(f"{told.said} This goes on by itself when the server is back.")
    elif isinstance(told, Outage):
        typer.echo("Both servers answer again.", err=True)
    elif as_json:
        return
    elif isinstance(told, MarkedBatch):
        typer.echo(_of_batch(told))
    elif isinstance(told, More):
        typer.echo("  … and more events of this batch: --max-events shows them.")
    else:
        typer.echo(_of_event(told))


def _of_batch(batch: "MarkedBatch") -> str:
    refused = f", {batch.rejected_count:,} refused" if batch.rejected_count else ""
    again = f", generation {batch.generation}" if batch.generation else ""
    marked = f"{batch.processed_at:%H:%M:%S}  batch {batch.batch_id}"
    return f"{strong(marked)}  {counted(batch.accepted_count, 'event')}{refused}{again}"


def _of_event(event: "DeliveredEvent") -> str:
    begin = (
        f"  {event.position:>12,}  {event.lag_seconds:>9,.3f} s  {event.event_id}  {shown(shortened(event.event_type))}"
    )
    return begin if event.event_context is None else f"{begin}\n{' ' * 16}{shown(event.event_context)}"
