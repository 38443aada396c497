"""The command `log move`: give the event log a new table with the current sorting key, while events are delivered."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from outbox_pipeline.cli.support.asking import require_agreement
from outbox_pipeline.cli.support.engines import ready_settings
from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.support.output import AsJson, print_facts, print_json, progress, shown
from outbox_pipeline.counts import counted

if TYPE_CHECKING:
    from outbox_pipeline.operations.log_move.copying import Progress
    from outbox_pipeline.operations.log_move.move import Moved
    from outbox_pipeline.operations.log_move.plan import Plan
    from outbox_pipeline.stores import Stores

#: How often the copy is told of where there is no terminal.
_TOLD_SECONDS = 10.0
_MAX_NAMED = 10


def add_to(app: typer.Typer) -> None:
    """Add the family of commands."""
    family = typer.Typer(help="Change the table of the event log in ClickHouse.", no_args_is_help=True)
    # Alone, a command would take the place of its family.
    family.callback()(_family)
    family.command("move")(move)
    app.add_typer(family, name="log")


def _family() -> None:
    """Change the table of the event log in ClickHouse."""


def move(
    is_confirmed: Annotated[bool, typer.Option("--yes", help="Move without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what a move would do; changes nothing.")
    ] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Drop the new table of a move that was not finished; the log stays.")
    ] = False,
    max_pause: Annotated[
        float,
        typer.Option("--max-pause", min=1, metavar="SECONDS", help="Longest time for which deliveries wait at a time."),
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Copy the event log into a new table with the current sorting key, prove it, and let it take the log's place.

    For a table that an earlier version made, which serves one outbox only; `outbox doctor` names it. Deliveries and
    reads go on; only for the last pass deliveries wait, and where that takes longer than --max-pause they go on and it
    is tried again. Every row is copied, also of batches that the ledger does not know. The old table stays under
    another name until you drop it. A move that was ended, or killed, goes on when the command is repeated. It says
    first what it needs and asks; without a terminal it wants --yes. Run it as the users that run `outbox init`.

    Example: `outbox log move --dry-run`
    """
    from outbox_pipeline.stores import open_stores

    with ready_settings() as settings, open_stores(settings) as stores:
        if abandon:
            _abandon(stores, is_confirmed=is_confirmed)
            return
        plan = _plan(stores)
        if dry_run or (plan.is_moved and not plan.is_begun):
            _tell_plan(plan, as_json=as_json)
            return
        moved = _move(stores, plan, is_confirmed=is_confirmed, max_pause=max_pause)
    _tell_moved(moved, as_json=as_json)


def _plan(stores: "Stores") -> "Plan":
    from outbox_pipeline.operations.log_move.plan import plan_move

    return plan_move(stores)


def _abandon(stores: "Stores", *, is_confirmed: bool) -> None:
    from outbox_pipeline.operations.log_move.move import abandon_move

    if not is_confirmed:
        require_agreement("Drop the new table of the unfinished move?")
    dropped = abandon_move(stores)
    typer.echo(f"Dropped: {', '.join(dropped)}." if dropped else "There is no unfinished move.")


def _move(stores: "Stores", plan: "Plan", *, is_confirmed: bool, max_pause: float) -> "Moved":
    from outbox_pipeline.logs import configure_logs
    from outbox_pipeline.operations.log_move.move import move_log
    from outbox_pipeline.operations.log_move.plan import require_room

    if not plan.is_moved:
        for name, value in _facts(plan):
            typer.echo(f"{name}: {shown(value)}", err=True)
        require_room(plan)
        if not is_confirmed:
            require_agreement(f"Move table {plan.table}?", when="this is what you want")
    with _telling() as tell:
        configure_logs(stores.settings)
        return move_log(stores, max_pause_seconds=max_pause, on_progress=tell)


@contextmanager
def _telling() -> "Iterator[Callable[[Progress], None]]":
    """Yield what shows the progress: a live display on a terminal, else a line now and then."""
    told = time.monotonic()
    with progress("rows") as display:
        task = display.add_task("Copying", total=None, rows="0")

        def tell(done: "Progress") -> None:
            nonlocal told
            said = f"{done.row_count:,} of {done.total_rows:,}"
            display.update(task, rows=said, description="Copying" if done.passes < 2 else "Copying what changed")
            if not sys.stderr.isatty() and time.monotonic() - told >= _TOLD_SECONDS:
                told = time.monotonic()
                typer.echo(f"Copied: {said} rows.", err=True)

        yield tell


def _tell_plan(plan: "Plan", *, as_json: bool) -> None:
    if as_json:
        print_json(plan)
    elif plan.is_moved:
        typer.echo(f"Table {plan.table} has the current sorting key: there is nothing to move.")
    else:
        print_facts([("dry run", "nothing was changed"), *_facts(plan)])


def _facts(plan: "Plan") -> list[tuple[str, object]]:
    from outbox_pipeline.operations.log_move.plan import megabytes

    free = "not visible to this user" if plan.free_bytes is None else megabytes(plan.free_bytes)
    facts: list[tuple[str, object]] = [
        ("table", plan.table),
        ("rows", f"{plan.row_count:,} in {counted(plan.batch_count, 'batch', 'batches')}"),
        (
            "of unknown batches",
            f"{counted(plan.unknown_rows, 'row')} in {counted(plan.unknown_batches, 'batch', 'batches')}, moved too",
        ),
        ("new table needs", f"about {megabytes(plan.needed_bytes)} of disk beside the old one; free: {free}"),
        ("views behind it", ", ".join(plan.views) or "none"),
        ("row policies", _policies(plan)),
    ]
    if plan.is_begun:
        facts.append(("begun before", f"{counted(plan.copied_rows, 'row')} copied, compared again"))
    return facts


def _policies(plan: "Plan") -> str:
    if plan.policies is None:
        return "not visible to this user; they stay with the table's name"
    if not plan.policies:
        return "none"
    return f"{', '.join(plan.policies)}; they stay with the table's name, so the old table will have none"


def _tell_moved(moved: "Moved", *, as_json: bool) -> None:
    if as_json:
        print_json(moved)
    elif moved.was_moved:
        typer.echo(f"Table {moved.table} has the current sorting key: there is nothing to move.")
    else:
        facts: list[tuple[str, object]] = [
            ("moved", f"table {moved.table}, {counted(moved.row_count, 'row')}"),
            ("deliveries waited", f"{moved.pause_seconds:.1f} s"),
            ("seconds", f"{moved.seconds:.1f}"),
        ]
        if moved.before:
            facts.append(("old table", f"{moved.before}; when you no longer need it: DROP TABLE {moved.before}"))
        print_facts(facts)
    for batch_id in moved.differing[:_MAX_NAMED]:
        complain(f"Batch {batch_id} differs from what the ledger expects, in the old table too.")
    if moved.differing:
        complain("Run 'outbox reconcile', which says what differs.")
