"""Commands on events that validation refused: `quarantine list`, `show`, `requeue`, `discard` and `replace`.

Invariant: a change of events that were not named one by one is confirmed with their count before it is made.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from outbox_pipeline.cli.quarantine import replace as replacement
from outbox_pipeline.cli.support.asking import ask, has_terminal, require_agreement, right_use
from outbox_pipeline.cli.support.engines import ready_settings
from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, shown
from outbox_pipeline.errors import QuarantineError
from outbox_pipeline.logs import escaped
from outbox_pipeline.names import shortened

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from outbox_pipeline.operations.quarantine import Requeued, Shown
    from outbox_pipeline.quarantined import Filter, QuarantinedEvent

#: A person reads this much of a context in a terminal; `--json` has all of it.
_CONTEXT_SHOWN = 4000

# Optional[] and not `| None`: typer then shows the bare type in its usage line.
Ids = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="ID", help="Events by id, or by their number in quarantine."),
]
EventType = Annotated[Optional[str], typer.Option("--type", help="Only events of this type.")]  # noqa: UP045
Reason = Annotated[Optional[str], typer.Option("--reason", help="Only events refused for this reason.")]  # noqa: UP045
Since = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--since", help="Only events held since this UTC date or time or later."),
]
Until = Annotated[Optional[str], typer.Option("--until", help="Only events held before this time.")]  # noqa: UP045
BatchId = Annotated[Optional[str], typer.Option("--batch", help="Only events that this batch refused.")]  # noqa: UP045
Everything = Annotated[bool, typer.Option("--all", help="All held events.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before changing many events.")]


def add_to(app: typer.Typer) -> None:
    """Add this family's commands."""
    family = typer.Typer(
        help="Look at events that validation refused: deliver them after all, correct them, or give them up.",
        no_args_is_help=True,
    )
    family.command("list")(list_events)
    family.command("show")(show)
    family.command("requeue")(requeue)
    family.command("discard")(discard)
    replacement.add_to(family)
    app.add_typer(family, name="quarantine")


def list_events(
    *,
    event_type: EventType = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    batch_id: BatchId = None,
    status: Annotated[str, typer.Option("--status", help="held, requeued, discarded or replaced.")] = "held",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most events to list.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List held events, latest first: number, id, type, reasons, and since when.

    Example: `outbox quarantine list --reason context_too_large --since 2026-03-01`
    """
    from outbox_pipeline.operations.quarantine import list_held, parse_filter
    from outbox_pipeline.quarantined import QuarantineStatus

    with right_use():
        wanted = parse_filter(event_type=event_type, reason=reason, since=since, until=until, batch_id=batch_id)
        if status not in list(QuarantineStatus):
            raise QuarantineError(f"{status!r} is no status: it is held, requeued, discarded or replaced.")
    with _outbox() as (engine, _):
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

    Example: `outbox quarantine show 412d8176-416a-5d43-8b59-333d72dce3f0`
    """
    from outbox_pipeline.operations.quarantine import parse_filter
    from outbox_pipeline.operations.quarantine import show as show_event

    with right_use():
        wanted = parse_filter([name])
    with _outbox() as (engine, _):
        found = show_event(engine, wanted)
    if as_json:
        print_json(found)
    else:
        print_facts(_facts(found))


def requeue(
    ids: Ids = None,
    *,
    event_type: EventType = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    batch_id: BatchId = None,
    everything: Everything = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Have held events delivered by the next batch; what is still bad comes back into quarantine.

    Fix the cause first. Exit code 1 when an event could not be requeued.

    Example: `outbox quarantine requeue --reason context_too_large`
    """
    from outbox_pipeline.operations.quarantine import parse_filter
    from outbox_pipeline.operations.quarantine import requeue as requeue_events

    with right_use():
        wanted = parse_filter(
            ids or (), event_type=event_type, reason=reason, since=since, until=until, batch_id=batch_id
        )
        _require_choice(wanted, everything=everything)
    with _outbox() as (engine, lock_seconds):
        chosen = _confirmed(engine, wanted, verb="Requeue", yes=yes)
        done = requeue_events(engine, chosen, lock_timeout_seconds=lock_seconds)
    _report_requeue(done, as_json=as_json)


def discard(
    ids: Ids = None,
    *,
    note: Annotated[str, typer.Option("--note", help="Why they are given up; kept with each event.")] = "",
    event_type: EventType = None,
    reason: Reason = None,
    since: Since = None,
    until: Until = None,
    batch_id: BatchId = None,
    everything: Everything = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Give held events up for good, with a note that says why; they will never be delivered.

    Example: `outbox quarantine discard --type smoke_test --note "sent by a test client"`
    """
    from outbox_pipeline.operations.quarantine import discard as discard_events
    from outbox_pipeline.operations.quarantine import parse_filter

    with right_use():
        wanted = parse_filter(
            ids or (), event_type=event_type, reason=reason, since=since, until=until, batch_id=batch_id
        )
        _require_choice(wanted, everything=everything)
        note = note.strip() or _asked_note()
    with _outbox() as (engine, lock_seconds):
        chosen = _confirmed(engine, wanted, verb="Discard", yes=yes)
        count = discard_events(engine, chosen, note=note, lock_timeout_seconds=lock_seconds)
    if as_json:
        print_json({"discarded": count})
    else:
        typer.echo(f"discarded {count}")


@contextmanager
def _outbox() -> Iterator[tuple["Engine", float]]:
    from outbox_pipeline.postgres.engine import create_outbox_engine

    with ready_settings(clickhouse=False) as settings:
        yield create_outbox_engine(settings, pooled=False), settings.lock_timeout_seconds


def _require_choice(wanted: "Filter", *, everything: bool) -> None:
    is_chosen = wanted.has_ids or wanted.has_conditions
    if not is_chosen and not everything:
        raise QuarantineError("Say which events: ids, --type, --reason, --batch, --since or --until, or --all.")
    if is_chosen and everything:
        raise QuarantineError("--all means every held event: leave it out, or everything else.")


def _asked_note() -> str:
    answer = ask("Why are they given up?") if has_terminal() else ""
    if not answer:
        raise QuarantineError('Say why with --note "…": it is kept with each event. (--reason is a filter.)')
    return answer


def _confirmed(engine: "Engine", wanted: "Filter", *, verb: str, yes: bool) -> "Filter":
    """Return exactly the events that were counted and agreed to; named ones need no question."""
    from outbox_pipeline.operations.quarantine import preview

    found = preview(engine, wanted)
    if yes or wanted.has_ids:
        return found.wanted
    typer.echo(f"{found.held.summary()}; oldest since {shown(found.held.oldest_at)}", err=True)
    require_agreement(f"{verb} {found.held.count:,} event{'' if found.held.count == 1 else 's'}?")
    return found.wanted


def _report_requeue(done: "Requeued", *, as_json: bool) -> None:
    if as_json:
        refused = [{"batch_id": item.batch_id, "events": item.event_count, "why": item.why} for item in done.refused]
        print_json({"requeued": done.count, "refused": refused})
    else:
        typer.echo(f"requeued {done.count}")
    for item in done.refused:
        complain(f"{item.event_count:,} events of batch {item.batch_id} stay held: {item.why}.")
    if done.refused:
        raise typer.Exit(1)


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
