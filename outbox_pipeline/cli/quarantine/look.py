"""The commands `quarantine list` and `quarantine show`, which only look."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from outbox_pipeline.cli.quarantine.options import OPTIONS, BatchId, EventType, Reason, Since, Until, outbox
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, shown
from outbox_pipeline.errors import UsageError
from outbox_pipeline.logs import escaped
from outbox_pipeline.names import shortened

if TYPE_CHECKING:
    from outbox_pipeline.operations.quarantine import Shown
    from outbox_pipeline.quarantined import QuarantinedEvent

#: A person reads this much of a context in a terminal; `--json` has all of it.
_CONTEXT_SHOWN = 4000


def list_events(
    *,
    event_type: EventType = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    batch_id: BatchId = None,
    status: Annotated[str, typer.Option("--status", help="held, requeued, discarded or replaced.")] = "held",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="Limit of events to list.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List held events, latest first: number, id, type, reasons, and since when.

    Example: `outbox quarantine list --reason context_too_large --since 2026-03-01`
    """
    from outbox_pipeline.operations.quarantine import list_held, parse_filter
    from outbox_pipeline.quarantined import QuarantineStatus

    wanted = parse_filter(
        event_type=event_type, reason=reason, since=since, until=until, batch_id=batch_id, names=OPTIONS
    )
    if status not in list(QuarantineStatus):
        raise UsageError(f"{status!r} is no status: it is held, requeued, discarded or replaced.")
    with outbox() as (engine, _):
        events = list_held(engine, wanted, status=QuarantineStatus(status), limit=limit + 1)
    if as_json:
        print_json([vars(event) for event in events[:limit]])
        return
    _print_events(events[:limit])
    if not events:
        typer.echo(f"Nothing that matches is {status}.", err=True)
    if len(events) > limit:
        typer.echo(f"There are more: --limit shows more than {limit}.", err=True)


def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="The event's id, or its number in quarantine.")],
    as_json: AsJson = False,
) -> None:
    """Show one event with its content, the reasons against it, and what was done about it.

    Prints the event's context: mind who reads along.

    Example: `outbox quarantine show EVENT_ID`, with an id of `outbox quarantine list`
    """
    from outbox_pipeline.operations.quarantine import parse_filter
    from outbox_pipeline.operations.quarantine import show as show_event

    wanted = parse_filter([name], names=OPTIONS)
    with outbox() as (engine, _):
        found = show_event(engine, wanted)
    if as_json:
        print_json(found)
    else:
        print_facts(_facts(found))


def _print_events(events: "Sequence[QuarantinedEvent]") -> None:
    # Plain lines and not a table: an id that is folded into two lines cannot be copied.
    rows = [
        (
            str(event.quarantine_id),
            str(event.event_id),
            shown(shortened(event.event_type)),
            escaped(",".join(event.reasons)),
            shown(event.quarantined_at),
            escaped(event.note or "") or (f"replaced by {event.replaced_by}" if event.replaced_by else ""),
        )
        for event in events
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _facts(found: "Shown") -> list[tuple[str, object]]:
    stay = found.history[-1]
    facts: list[tuple[str, object]] = [("event", stay.event_id), ("event type", shortened(stay.event_type))]
    if found.content is None:
        facts.append(("content", "gone from outbox.event"))
    else:
        content = {name: value for name, value in vars(found.content).items() if name not in {"event_id", "event_type"}}
        content |= {"environment": shortened(found.content.environment)}
        content |= {"context": _beginning(found.content.context)}
        facts += [(name.removesuffix("_at").replace("_", " "), value) for name, value in content.items()]
    for item in found.history:
        what = f"{', '.join(item.reasons)}, held {shown(item.quarantined_at)} by batch {item.batch_id}"
        facts.append((f"number {item.quarantine_id}", f"{what}{_outcome(item)}"))
    return facts


def _outcome(stay: "QuarantinedEvent") -> str:
    if stay.resolved_at is None:
        return ""
    by = f" by {stay.replaced_by}" if stay.replaced_by else ""
    return f", {stay.status}{by} {shown(stay.resolved_at)}" + (f": {stay.note}" if stay.note else "")


def _beginning(context: str) -> str:
    text = context[:_CONTEXT_SHOWN]
    if len(context) <= _CONTEXT_SHOWN:
        return text
    return f"{text}… ({len(context):,} characters, --json has all of them)"
