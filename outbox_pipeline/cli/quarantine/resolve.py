"""The commands `quarantine requeue` and `quarantine discard`.

Invariant: a change of events that were not named one by one is confirmed with their count before it is made.
"""

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from outbox_pipeline.cli.quarantine.options import OPTIONS, BatchId, EventType, Reason, Since, Until, outbox
from outbox_pipeline.cli.support.asking import ask, has_terminal, require_agreement
from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.support.output import AsJson, print_json, shown
from outbox_pipeline.cli.support.texts import in_utf8
from outbox_pipeline.counts import counted
from outbox_pipeline.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from outbox_pipeline.operations.quarantine import Requeued
    from outbox_pipeline.quarantined import Filter

Ids = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="ID", help="Events by id, or by their number in quarantine."),
]
Everything = Annotated[bool, typer.Option("--all", help="All held events.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before changing many events.")]


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

    wanted = parse_filter(
        ids or (), event_type=event_type, reason=reason, since=since, until=until, batch_id=batch_id, names=OPTIONS
    )
    _require_choice(wanted, everything=everything)
    with outbox() as (engine, lock_seconds):
        chosen = _confirmed(engine, wanted, verb="Requeue", yes=yes)
        done = requeue_events(engine, chosen, lock_timeout_seconds=lock_seconds)
    _report_requeue(done, as_json=as_json)


def discard(
    ids: Ids = None,
    *,
    note: Annotated[
        str,
        typer.Option(
            "--note",
            help="Why they are given up; kept with each event. Required, or asked for on a terminal.",
            callback=in_utf8,
        ),
    ] = "",
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

    wanted = parse_filter(
        ids or (), event_type=event_type, reason=reason, since=since, until=until, batch_id=batch_id, names=OPTIONS
    )
    _require_choice(wanted, everything=everything)
    note = note.strip() or _asked_note()
    with outbox() as (engine, lock_seconds):
        chosen = _confirmed(engine, wanted, verb="Discard", yes=yes)
        count = discard_events(engine, chosen, note=note, lock_timeout_seconds=lock_seconds)
    if as_json:
        print_json({"discarded": count})
    else:
        typer.echo(f"discarded {count}")


def _require_choice(wanted: "Filter", *, everything: bool) -> None:
    is_chosen = wanted.has_ids or wanted.has_conditions
    if not is_chosen and not everything:
        raise UsageError("Say which events: ids, --type, --reason, --batch, --since or --until, or --all.")
    if is_chosen and everything:
        raise UsageError("--all means every held event: leave it out, or everything else.")


def _asked_note() -> str:
    answer = ask("Why are they given up?") if has_terminal() else ""
    if not answer:
        raise UsageError('Say why with --note "…": it is kept with each event. (--reason is a filter.)')
    return answer


def _confirmed(engine: "Engine", wanted: "Filter", *, verb: str, yes: bool) -> "Filter":
    """Return exactly the events that were counted and agreed to; named ones need no question."""
    from outbox_pipeline.operations.quarantine import preview

    found = preview(engine, wanted)
    if yes or wanted.has_ids:
        return found.wanted
    typer.echo(f"{found.held.summary()}; oldest since {shown(found.held.oldest_at)}", err=True)
    require_agreement(f"{verb} {counted(found.held.count, 'event')}?")
    return found.wanted


def _report_requeue(done: "Requeued", *, as_json: bool) -> None:
    if as_json:
        refused = [{"batch_id": item.batch_id, "events": item.event_count, "why": item.why} for item in done.refused]
        print_json({"requeued": done.count, "refused": refused})
    else:
        typer.echo(f"requeued {done.count}")
    for item in done.refused:
        complain(f"Still held: {counted(item.event_count, 'event')} of batch {item.batch_id}, because {item.why}.")
    if done.refused:
        raise typer.Exit(1)
