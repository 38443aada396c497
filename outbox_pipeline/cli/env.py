"""The command `env`: the URLs of the engines that run, as lines a shell takes over."""

from typing import TYPE_CHECKING

import typer

from outbox_pipeline.cli.support.engines import given_urls, other_home, require_no_stale_urls, running_settings
from outbox_pipeline.cli.support.output import quoted
from outbox_pipeline.errors import ConfigurationError, OutboxError, first_line

if TYPE_CHECKING:
    from outbox_pipeline.settings import Settings


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("env")(env)


def env() -> None:
    """Print export lines so that your code, dagster or a notebook use the same engines; starts nothing.

    Where `outbox up --runs celery` has a broker of its own, it is among them, so that `outbox doctor` asks the workers
    and `outbox worker` is one more of them.

    OUTBOX_FIRST_DAY is the ledger's first day, with which the partitions of a code server begin that is started here.

    URLs that an earlier one printed for another OUTBOX_HOME give way, and a line says so.

    The URLs are printed with their passwords, that is what this command is for: keep them out of logs.

    Example: `eval "$(outbox env)" && dagster dev`
    """
    from outbox_pipeline.settings import load_settings

    settings = running_settings()
    other = other_home(load_settings())
    require_no_stale_urls(settings)
    values, missing = given_urls(settings)
    if other is not None and missing:
        # One's own code would go on publishing there.
        typer.echo(f"unset {' '.join(missing)}")
    if other is not None:
        done = "they are taken out of it" if missing else "these are its"
        typer.echo(f"The URLs in this shell were of {other}; OUTBOX_HOME is {settings.home}: {done}.", err=True)
    if missing:
        raise ConfigurationError(
            f"Neither set nor served by an embedded engine that runs on {settings.home}: {', '.join(missing)}. "
            "Start the engines with 'outbox up', or set what is missing."
        )
    from outbox_pipeline.orchestration.host.stack import dagster_variables
    from outbox_pipeline.secret_files import SUFFIX, is_in_file

    values |= {"OUTBOX_HOME": str(settings.home), **dagster_variables(settings.home)}
    if in_files := [name + SUFFIX for name in values if is_in_file(name)]:
        # With both a command would ask which one counts.
        typer.echo(f"unset {' '.join(in_files)}")
    for name, value in values.items():
        typer.echo(f"export {name}={quoted(value)}")
    typer.echo(_first_day(settings))


def _first_day(settings: "Settings") -> str:
    from outbox_pipeline.operations.first_day import VARIABLE, find_first_day

    try:
        return f"export {VARIABLE}={quoted(find_first_day(settings).isoformat())}"
    except OutboxError as error:
        # What a shell has of another ledger would be wrong here.
        typer.echo(f"Without {VARIABLE}: {first_line(error)}", err=True)
        return f"unset {VARIABLE}"
