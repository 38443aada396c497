"""Commands that compare both sides and deliver again: `reconcile` and `replay`."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Optional
from uuid import UUID

import typer

from outbox_pipeline.cli.support.engines import ready_settings
from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, shown
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.names import shortened

if TYPE_CHECKING:
    from outbox_pipeline.operations.reconcile.choose import Chosen
    from outbox_pipeline.operations.reconcile.findings import Reconciled, Window
    from outbox_pipeline.operations.reconcile.repair import Repaired
    from outbox_pipeline.operations.replay import Replayed
    from outbox_pipeline.stores import Stores

#: Differing batches and days that are printed one by one.
_MOST_SHOWN = 20

FirstDay = Annotated[str, typer.Option("--from", metavar="DAY", help="First UTC day, e.g. 2026-03-01.")]
LastDay = Annotated[str, typer.Option("--to", metavar="DAY", help="Last UTC day, included.")]


def add_to(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.command("reconcile")(reconcile)
    app.command("replay")(replay)


def reconcile(
    first_day: FirstDay = "",
    last_day: LastDay = "",
    repair: Annotated[
        bool, typer.Option("--repair", help="Deliver differing batches again and put stray events back.")
    ] = False,
    by_type: Annotated[
        bool, typer.Option("--by-type", help="Compare by event type too; reads all events of the days.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare PostgreSQL and ClickHouse batch by batch; with --repair leave exactly the ledger's rows.

    All days unless told otherwise. Rows under batch ids the ledger does not know are looked for in the whole table,
    reported and never deleted. Exit code 0 when both sides agree or were repaired, 1 when differences remain.

    Example: `outbox reconcile --from 2026-03-01 --to 2026-03-07 --repair`
    """
    from outbox_pipeline.operations.reconcile import compare
    from outbox_pipeline.operations.reconcile import repair as repairs
    from outbox_pipeline.stores import open_stores

    window = _window(first_day, last_day)
    with ready_settings() as settings, open_stores(settings) as stores:
        found = compare.reconcile(stores, window, by_type=by_type)
        repaired = repairs.repair(stores, found) if repair else None
        left = repairs.differences_left(stores, found) if repaired is None else list(repaired.left)
    if as_json:
        print_json(_as_plain(found, repaired, left))
    else:
        print_facts(_facts(found, repaired))
    for sentence in left[:_MOST_SHOWN]:
        complain(sentence)
    if left:
        raise typer.Exit(1)


def replay(
    first_day: FirstDay = "",
    last_day: LastDay = "",
    event_type: Annotated[
        str, typer.Option("--type", help="Only batches with events of this type; they are replayed whole.")
    ] = "",
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
    from outbox_pipeline.operations.reconcile.choose import Choice, choose, count
    from outbox_pipeline.stores import open_stores

    if not (first_day or last_day or event_type or batch_id):
        raise typer.BadParameter("say which batches: give --from and --to, --type or --batch")
    choice = Choice(_window(first_day, last_day), event_type or None, batch_id)
    with ready_settings() as settings, open_stores(settings) as stores:
        batches = choose(stores, choice)
        replayed = None if dry_run else _replay(stores, batches, reload=reload)
    _print_replay(count(batches), replayed, as_json=as_json)
    failed = [item for item in replayed or [] if item.outcome in ("failed", "pruned")]
    for item in failed[:_MOST_SHOWN]:
        complain(f"Batch {item.batch_id}: {item.outcome}. {item.detail}")
    if failed:
        raise typer.Exit(1)


def _window(first_day: str, last_day: str) -> "Window":
    from outbox_pipeline.operations.reconcile.findings import ALL_DAYS, Window
    from outbox_pipeline.operations.reconcile.repair import parse_day

    try:
        first = parse_day(first_day, "--from") if first_day else ALL_DAYS.first_day
        last = parse_day(last_day, "--to") if last_day else ALL_DAYS.last_day
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from None
    if first > last:
        raise typer.BadParameter(f"--from {first} is after --to {last}")
    return Window(first, last)


def _replay(stores: "Stores", batches: list[Any], *, reload: bool) -> "list[Replayed]":
    from outbox_pipeline.cli.support.output import progress
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
    outcomes = Counter(str(item.outcome) for item in replayed or [])
    if as_json:
        shown = None if replayed is None else [vars(item) for item in replayed if item.outcome != "proven"]
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


def _facts(found: "Reconciled", repaired: "Repaired | None") -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("days", len(found.days)),
        ("batches", sum(day.batches for day in found.days)),
        ("rows", f"{sum(day.found_rows for day in found.days):,} of {sum(day.expected_rows for day in found.days):,}"),
        ("batches that differ", len(found.differences)),
        ("untracked events", sum(stray.event_count for stray in found.strays)),
        ("rows of unknown batches", sum(rows.row_count for rows in found.unknown)),
        ("on their way", f"{sum(day.open_batches for day in found.days):,} batches"),
        ("in quarantine", sum(day.held_events for day in found.days)),
        ("seconds", f"{found.seconds:.1f}"),
    ]
    facts += [(f"{day.day}", day.sentence) for day in found.days if not day.is_clean][:_MOST_SHOWN]
    facts += [(f"batch {item.batch.batch_id}", item.sentence) for item in found.differences[:_MOST_SHOWN]]
    different = [item for item in found.types if item.expected != item.found]
    facts += [
        (f"{item.day} {shown(shortened(item.event_type))}", f"{item.found:,} of {item.expected:,}")
        for item in different
    ]
    if repaired is not None:
        facts += [("delivered again", len(repaired.redelivered)), ("put back", repaired.put_back)]
    return facts


def _as_plain(found: "Reconciled", repaired: "Repaired | None", left: list[str]) -> dict[str, Any]:
    return {
        "is_clean": found.is_clean,
        "seconds": round(found.seconds, 3),
        "days": [vars(day) for day in found.days],
        "differences": [_plain_difference(item) for item in found.differences],
        "strays": [vars(stray) for stray in found.strays],
        "late": [vars(item) for item in found.late],
        "unknown": [vars(rows) for rows in found.unknown],
        "unknown_batches": found.unknown_batches,
        "types": [vars(item) for item in found.types],
        "repaired": None if repaired is None else [vars(item) for item in repaired.batches],
        "put_back": None if repaired is None else repaired.put_back,
        "left": left,
    }


def _plain_difference(item: Any) -> dict[str, Any]:
    batch = item.batch
    known = {"batch_id": batch.batch_id, "day": batch.recorded_on, "generation": batch.generation}
    return {**known, "is_pruned": batch.pruned_at is not None, **{k: v for k, v in vars(item).items() if k != "batch"}}
