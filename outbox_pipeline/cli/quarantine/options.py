"""What the commands of `quarantine` share: the filters, and the database they work on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from outbox_pipeline.cli.support.engines import ledger_engine, ready_settings
from outbox_pipeline.cli.support.texts import in_utf8

if TYPE_CHECKING:
    from sqlalchemy import Engine

# Optional[] and not `| None`: typer then shows the bare type in its usage line.
EventType = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--type", help="Only events of this type.", callback=in_utf8),
]
Reason = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--reason", help="Only events refused for this reason.", callback=in_utf8),
]
Since = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--since", help="Only events held since this UTC date or time or later."),
]
Until = Annotated[Optional[str], typer.Option("--until", help="Only events held before this time.")]  # noqa: UP045
BatchId = Annotated[Optional[str], typer.Option("--batch", help="Only events that this batch refused.")]  # noqa: UP045

#: What the words of a filter are called on the command line.
OPTIONS = {
    "id": "ID",
    "event_type": "--type",
    "reason": "--reason",
    "since": "--since",
    "until": "--until",
    "batch_id": "--batch",
}


@contextmanager
def outbox() -> Iterator[tuple["Engine", float]]:
    """Yield the outbox database, and for how many seconds a lock is waited for."""

    with ready_settings(clickhouse=False) as settings:
        yield ledger_engine(settings), settings.lock_timeout_seconds
