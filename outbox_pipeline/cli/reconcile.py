"""The command `reconcile`: compare both sides, and repair what differs when asked to."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from outbox_pipeline.cli.support.days import FirstDay, LastDay, window_of
from outbox_pipeline.cli.support.engines import ready_settings
from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, shown
from outbox_pipeline.counts import counted
from outbox_pipeline.names import shortened

if TYPE_CHECKING:
    from outbox_pipeline.operations.reconcile.findings import Reconciled
    from outbox_pipeline.operations.reconcile.repair import Repaired

#: Differing batches and days that are printed one by one.
_MAX_SHOWN = 20


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reconcile")(reconcile)


def reconcile(
    first_day: FirstDay = None,
    last_day: LastDay = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Deliver differing batches again and put untracked events back.")
    ] = False,
    by_type: Annotated[
        bool, typer.Option("--by-type", help="Compare by event type too; reads all events of the days.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare PostgreSQL and ClickHouse batch by batch; with --repair leave exactly the ledger's rows.

    All days unless told otherwise. Rows under batch ids the ledger does not know are looked for in the whole table,
    reported and never deleted. Where the sequence of positions went back, --repair sets it forward, and gives events at
    positions of old batches new ones, from which they are delivered. Exit code 0 when both sides agree or were
    repaired, 1 when differences remain.

    Example: `outbox reconcile --from 2026-03-01 --to 2026-03-07 --repair`
    """
    from outbox_pipeline.operations.reconcile import compare
    from outbox_pipeline.operations.reconcile import repair as repairs
    from outbox_pipeline.stores import open_stores

    window = window_of(first_day, last_day)
    with ready_settings() as settings, open_stores(settings) as stores:
        found = compare.reconcile(stores, window, by_type=by_type)
        repaired = repairs.repair(stores, found) if repair else None
        left = repairs.differences_left(stores, found) if repaired is None else list(repaired.left)
    if as_json:
        print_json(_as_plain(found, repaired, left))
    else:
        print_facts(_facts(found, repaired))
    for sentence in left[:_MAX_SHOWN]:
        complain(sentence)
    if left:
        raise typer.Exit(1)


def _facts(found: "Reconciled", repaired: "Repaired | None") -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("days", len(found.days)),
        ("batches", sum(day.batches for day in found.days)),
        ("rows", f"{sum(day.found_rows for day in found.days):,} of {sum(day.expected_rows for day in found.days):,}"),
        ("batches that differ", len(found.differences)),
        ("untracked events", sum(item.event_count for item in found.untracked)),
        ("rows of unknown batches", sum(rows.row_count for rows in found.unknown)),
        ("on their way", counted(sum(day.open_batches for day in found.days), "batch", "batches")),
        ("in quarantine", sum(day.held_events for day in found.days)),
        ("seconds", f"{found.seconds:.1f}"),
    ]
    facts += [(f"{day.day}", day.sentence) for day in found.days if not day.is_clean][:_MAX_SHOWN]
    if repaired is not None:
        # Without a repair each stands among what is left, below.
        facts += [(f"batch {item.batch.batch_id}", item.sentence) for item in found.differences[:_MAX_SHOWN]]
    different = [item for item in found.types if item.expected != item.found]
    facts += [
        (f"{item.day} {shown(shortened(item.event_type))}", f"{item.found:,} of {item.expected:,}")
        for item in different
    ]
    if repaired is not None:
        facts += [("delivered again", len(repaired.redelivered)), ("put back", repaired.put_back)]
        if repaired.moved:
            facts.append(("moved to new positions", repaired.moved))
    return facts


def _as_plain(found: "Reconciled", repaired: "Repaired | None", left: list[str]) -> dict[str, Any]:
    return {
        "is_clean": found.is_clean,
        "seconds": round(found.seconds, 3),
        "days": [vars(day) for day in found.days],
        "differences": [_plain_difference(item) for item in found.differences],
        "strays": [vars(item) for item in found.untracked],
        "late": [vars(item) for item in found.late],
        "unknown": [vars(rows) for rows in found.unknown],
        "unknown_batches": found.unknown_batches,
        "types": [vars(item) for item in found.types],
        "repaired": None if repaired is None else [vars(item) for item in repaired.batches],
        "put_back": None if repaired is None else repaired.put_back,
        "moved": None if repaired is None else repaired.moved,
        "left": left,
    }


def _plain_difference(item: Any) -> dict[str, Any]:
    batch = item.batch
    known = {"batch_id": batch.batch_id, "day": batch.recorded_on, "generation": batch.generation}
    return {**known, "is_pruned": batch.pruned_at is not None, **{k: v for k, v in vars(item).items() if k != "batch"}}
