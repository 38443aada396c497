"""The command `adopt`: the way on for a ledger that stopped because it was restored, failed over or cloned."""

from typing import TYPE_CHECKING, Annotated

import typer

from outbox_pipeline.cli.support.asking import require_agreement
from outbox_pipeline.cli.support.engines import ready_settings
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, shown
from outbox_pipeline.counts import counted

if TYPE_CHECKING:
    from outbox_pipeline.operations.adopt import Adoption
    from outbox_pipeline.stores import Stores

_OWN = "The ledger is this cluster's own, and ClickHouse knows of no other instance of it: there is nothing to adopt."


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("adopt")(adopt)


def adopt(
    is_confirmed: Annotated[bool, typer.Option("--yes", help="Adopt without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what adopting would do.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a restored, failed over or cloned outbox go on: learn from ClickHouse what the old instance delivered.

    For a ledger that has stopped and asks for it, also one that was restored in place. Run it on exactly one copy, with
    all others stopped for good: ClickHouse refuses what they insert from then on. What ClickHouse holds under the same
    position and event id is processed from then on; rows it holds of events that do not exist here are reported and
    never touched, and an event that is published again under the id of one is held. It shows what it found and asks;
    without a terminal it wants --yes.

    Example: `outbox adopt --dry-run`
    """
    from outbox_pipeline.stores import open_stores

    with ready_settings() as settings, open_stores(settings) as stores:
        result = _adopt(stores, is_confirmed=is_confirmed, dry_run=dry_run)
    if as_json:
        print_json(result)
    elif result.was_own:
        typer.echo(_OWN)
    else:
        print_facts(_facts(result))


def _adopt(stores: "Stores", *, is_confirmed: bool, dry_run: bool) -> "Adoption":
    from outbox_pipeline.operations.adopt import adopt as adopt_ledger

    if not (is_confirmed or dry_run):
        found = adopt_ledger(stores, dry_run=True)
        if found.was_own:
            return found
        _confirm(found)
    return adopt_ledger(stores, dry_run=dry_run)


def _confirm(found: "Adoption") -> None:
    for name, value in _findings(found):
        typer.echo(f"{name}: {shown(value)}", err=True)
    require_agreement(
        "Is the old instance stopped for good? Shall this copy take over?",
        when="the old instance is stopped for good and this copy shall take over",
    )


def _facts(result: "Adoption") -> list[tuple[str, object]]:
    done = ("dry run", "nothing was changed") if result.is_dry_run else ("adopted", "yes")
    return [done, *_findings(result)]


def _findings(result: "Adoption") -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("delivered elsewhere", f"{_events(result.adopted_events)} in {_batches(result.adopted_batches)}"),
        ("… of these not whole yet", _batches(result.unfinished_batches)),
        ("taken back here", f"{_batches(result.withdrawn_batches)} that were cut here too and not sent"),
        ("carried further elsewhere", _batches(result.raised_batches)),
        (
            "only in ClickHouse",
            f"{counted(result.strange_rows, 'row')} in {_batches(result.strange_batches)}, left alone",
        ),
        ("published again here", f"{_events(result.repeated_events)}, to be held and not delivered twice"),
        ("ids kept of other instances", result.kept_ids),
        ("in ClickHouse twice", _events(result.doubled_events)),
        ("processed here, not whole there", _incomplete(result.incomplete_batches)),
        ("hidden in old batches", f"{_events(result.hidden_events)}, to get new positions and be delivered"),
        ("untracked", f"{_events(result.untracked_events)}, put back"),
        ("gaps to settle", result.gap_count),
        ("sequence", f"{result.sequence_before:,} → {result.sequence_after:,}"),
        ("newest row of the old instance", result.last_loaded_at),
    ]
    facts += [("  e.g. only in ClickHouse", f"{row.event_id} at {row.position:,}") for row in result.strange_samples]
    facts += [
        ("  e.g. hidden", f"{row.event_id} at {row.position:,} of batch {row.batch_id}")
        for row in result.hidden_samples
    ]
    facts += [("  e.g. twice", event_id) for event_id in result.doubled_samples]
    return facts


def _incomplete(count: int) -> str:
    return _batches(count) + (": 'outbox reconcile --repair', or a backfill in Dagster" if count else "")


def _events(count: int) -> str:
    return counted(count, "event")


def _batches(count: int) -> str:
    return counted(count, "batch", "batches")
