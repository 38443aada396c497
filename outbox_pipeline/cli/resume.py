"""The command `resume`: let parked batches be tried again."""

from typing import Annotated, Optional
from uuid import UUID

import typer

from outbox_pipeline.cli.support.engines import ledger_engine, ready_settings
from outbox_pipeline.cli.support.output import shown


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("resume")(resume)


def resume(
    batch_id: Annotated[
        Optional[UUID],  # noqa: UP045 - typer shows the bare type in its usage line
        typer.Argument(help="The parked batch; every parked one when left out."),
    ] = None,
) -> None:
    """Let parked batches be tried again, at once; fix what their last error says first.

    Example: `outbox resume`
    """
    from outbox_pipeline.operations.resume import resume as resume_batches

    with ready_settings(clickhouse=False) as settings:
        engine = ledger_engine(settings)
        resumed = resume_batches(engine, batch_id, lock_timeout_seconds=settings.lock_timeout_seconds)
    for sentence in resumed.sentences:
        typer.echo(shown(sentence), err=True)
    typer.echo(f"resumed {len(resumed.batches)}")
