"""Questions at the terminal; results stay on stdout, so they go to stderr."""

import sys

import typer

from outbox_pipeline.cli.support.failures import complain


def ask(question: str) -> str:
    """Return the answer to a question, without spaces around it."""
    # typer.prompt and typer.confirm put a space on stdout even when told to ask on stderr.
    typer.echo(f"{question} ", nl=False, err=True)
    return sys.stdin.readline().strip()


def has_terminal() -> bool:
    """Tell whether there is a terminal to ask on."""
    return sys.stdin.isatty()


def require_agreement(question: str, *, when: str = "") -> None:
    """Go on only with a yes: exit code 1 after a no, 2 without a terminal, where *when* says what --yes would mean."""
    if not has_terminal():
        complain(f"There is no terminal to ask on: {f'when {when}, ' if when else ''}repeat with --yes.")
        raise typer.Exit(2)
    if ask(f"{question} [y/N]").lower() not in {"y", "yes"}:
        typer.echo("Nothing was changed.", err=True)
        raise typer.Exit(1)
