"""The command `replay`: prove batches again, and deliver again those that differ."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Optional
from uuid import UUID

import typer

from outbox_pipeline.cli.support.days import FirstDay, LastDay, window_of
from outbox_pipeline.cli.support.engines import ready_settings
from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, progress
from outbox_pipeline.cli.support.texts import in_utf8
from outbox_pipeline.errors import UsageError

if TYPE_CHECKING:
    from outbox_pipeline.batches import Batch
    from outbox_pipeline.operations.replay import Replayed
    from outbox_pipeline.operations.replay_choice import Chosen
    from outbox_pipeline.stores import Stores

#: Batches that failed and are printed one by one.
_MAX_SHOWN = 20


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("replay")(replay)


def replay(
    first_day: FirstDay = None,
    last_day: LastDay = None,
    event_type: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--type", help="Only batches with events of this type; they are replayed whole.", callback=in_utf8
        ),
    ] = None,
    batch_id: Annotated[
        Optional[UUID],  # noqa: UP045 - typer shows the bare type in its usage line
        typer.Option("--batch", help="Only this batch."),
    ] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Send again what is proven whole, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what is meant.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prove existing batches and deliver again those that differ; with --reload deliver all of them again.

    Nothing is doubled: what is sent again is a new generation, and the batch's older rows are deleted before it.
    Batches on their way or parked are left alone; pruned ones are proved only. Exit code 1 when a batch failed or could
    not be sent.

    Example: `outbox replay --from 2026-03-01 --to 2026-03-01 --reload --dry-run`
    """
    from outbox_pipeline.operations.replay import Outcome
    from outbox_pipeline.operations.replay_choice import Choice, choose, count
    from outbox_pipeline.stores import open_stores

    if all(given is None for given in (first_day, last_day, event_type, batch_id)):
        raise UsageError("Say which batches: give --from and --to, --type or --batch.")
    if event_type == "":
        raise UsageError("What is given as --type is no event type: it is empty.")
    choice = Choice(window_of(first_day, last_day), event_type, batch_id)
    with ready_settings() as settings, open_stores(settings) as stores:
        batches = choose(stores, choice)
        replayed = None if dry_run else _replay(stores, batches, reload=reload)
    _print_replay(count(batches), replayed, as_json=as_json)
    failed = [item for item in replayed or [] if item.outcome in (Outcome.FAILED, Outcome.PRUNED)]
    for item in failed[:_MAX_SHOWN]:
        complain(f"Batch {item.batch_id}: {item.outcome}. {item.detail}")
    if failed:
        raise typer.Exit(1)


def _replay(stores: "Stores", batches: "list[Batch]", *, reload: bool) -> "list[Replayed]":
    from outbox_pipeline.logs import configure_logs
    from outbox_pipeline.operations.replay import replay as replay_batches

    done = []
    with progress("batches") as display:
        configure_logs(stores.settings)
        task = display.add_task("Replaying", total=len(batches), batches="0")
        for item in replay_batches(stores, batches, reload=reload):
            done.append(item)
            display.update(task, batches=f"{len(done):,} of {len(batches):,}")
    return done


def _print_replay(chosen: "Chosen", replayed: "list[Replayed] | None", *, as_json: bool) -> None:
    from outbox_pipeline.operations.replay import Outcome

    outcomes = Counter(str(item.outcome) for item in replayed or [])
    if as_json:
        shown = None if replayed is None else [vars(item) for item in replayed if item.outcome != Outcome.PROVEN]
        print_json({"dry_run": replayed is None, **vars(chosen), "outcomes": dict(outcomes), "not_proven": shown})
        return
    facts: list[tuple[str, object]] = [
        ("dry run" if replayed is None else "replayed", "nothing was changed" if replayed is None else "yes"),
        ("batches", chosen.batches),
        ("events", chosen.events),
        ("days", chosen.days),
        ("… pruned, can only be proved", chosen.pruned_batches),
        ("… not processed, left alone", chosen.unprocessed_batches),
    ]
    facts += [(outcome, number) for outcome, number in sorted(outcomes.items())]
    print_facts(facts)
