"""The command that keeps the outbox small: `prune`."""

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from outbox_pipeline.cli.support.engines import ready_settings
from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, progress
from outbox_pipeline.counts import counted

if TYPE_CHECKING:
    from outbox_pipeline.operations.retention import Pruned
    from outbox_pipeline.stores import Stores

_MAX_NAMED = 10


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prune")(prune)


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look at what would go; changes nothing.")] = False,
    minutes: Annotated[
        Optional[float],  # noqa: UP045 - typer shows the bare type in its usage line
        typer.Option("--minutes", min=0, help="Stop between two batches after this long; the next prune goes on."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Delete events that were delivered OUTBOX_RETENTION_DAYS ago; ClickHouse must show each batch whole first.

    What is not delivered, or held in quarantine, is never deleted, and the ledger's rows stay. In ClickHouse it deletes
    fences of pruned batches and old numbers of event_log_ledger. Ids that an adoption kept of events of other instances
    are forgotten after the same time. Exit code 1 when a batch was refused because ClickHouse shows it differently.

    Example: `outbox prune --dry-run`
    """
    from outbox_pipeline.stores import open_stores

    with ready_settings() as settings, open_stores(settings) as stores:
        done = _prune(stores, dry_run=dry_run, seconds=None if minutes is None else minutes * 60)
    if as_json:
        print_json(done)
    else:
        print_facts(_facts(done))
    for item in done.refused[:_MAX_NAMED]:
        complain(f"Batch {item.batch_id} keeps its events: {item.detail}.")
    if done.refused:
        complain(f"{counted(len(done.refused), 'batch', 'batches')} refused.")
        raise typer.Exit(1)


def _prune(stores: "Stores", *, dry_run: bool, seconds: float | None) -> "Pruned":
    from outbox_pipeline.logs import configure_logs
    from outbox_pipeline.operations import retention

    with progress("batches", "events") as display:
        configure_logs(stores.settings)
        task = display.add_task("Looking" if dry_run else "Pruning", total=None, batches=0, events="0")

        def show(done: "Pruned") -> None:
            display.update(task, batches=done.batches, events=f"{done.events:,}")

        return retention.prune(stores, dry_run=dry_run, seconds=seconds, on_progress=show)


def _facts(done: "Pruned") -> list[tuple[str, Any]]:
    if done.retention_days == 0:
        return [("pruned", "nothing: OUTBOX_RETENTION_DAYS is 0, everything is kept")]
    skipped = ", ".join(f"{count} {reason}" for reason, count in done.reasons.items())
    facts: list[tuple[str, Any]] = [
        (
            "would prune" if done.is_dry_run else "pruned",
            f"{counted(done.events, 'event')} of {counted(done.batches, 'batch', 'batches')}",
        ),
        ("discarded events", done.discarded),
        ("skipped batches", skipped or "none"),
        ("oldest kept", done.oldest_kept_at),
        ("seconds", f"{done.seconds:.1f}"),
    ]
    if done.forgotten_ids:
        facts.insert(2, ("ids kept of other instances", f"{done.forgotten_ids:,} forgotten"))
    if not done.is_finished:
        facts.append(("not finished", "the next prune goes on"))
    return facts
