"""The command `doctor`: what is wrong with the set-up, and what to do about it."""

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from outbox_pipeline.cli.support.engines import embedded_pids, reachable_settings
from outbox_pipeline.cli.support.output import AsJson, print_json, shown, strong, verdict
from outbox_pipeline.errors import OutboxError

if TYPE_CHECKING:
    from outbox_pipeline.monitoring.check import Check


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Check settings, servers, grants, schemas, clocks, ledger, Dagster; say what to do about each thing that is wrong.

    Changes nothing but for a row of known bytes in a table of its own. Exit code 1 when a check fails; a warning fails
    nothing.

    Example: `outbox doctor`
    """
    checks = _examine()
    if as_json:
        print_json([vars(check) for check in checks])
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            typer.echo(f"{verdict(_mark(check))} {strong(check.name.ljust(width))}   {shown(check.message)}")
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


def _examine() -> "list[Check]":
    from outbox_pipeline.monitoring.doctor import examine, unusable

    try:
        with reachable_settings() as (settings, failed):
            checks = examine(settings, failed)
            pids = embedded_pids()
    except OutboxError as error:
        return unusable(error)
    return [_with_pid(check, pids.get(check.name)) for check in checks]


def _with_pid(check: "Check", pid: int | None) -> "Check":
    """Name the process of an embedded engine that does not answer."""
    if check.ok is not False or pid is None:
        return check
    said = f"It is the embedded engine with pid {pid}: if it hangs, end it with 'kill -9 {pid}'; the next command or "
    return replace(check, message=f"{check.message} {said}'outbox up' starts it again.")


def _mark(check: "Check") -> str:
    return "WARN " if check.is_warning else {True: "ok   ", False: "WRONG", None: "-    "}[check.ok]
