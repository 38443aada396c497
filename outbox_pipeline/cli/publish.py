"""The command `publish`: a file of events in one transaction."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from outbox_pipeline.cli.support.engines import ledger_engine, ready_settings
from outbox_pipeline.cli.support.failures import complain
from outbox_pipeline.cli.support.files import existing, name_of, opened
from outbox_pipeline.cli.support.output import AsJson, print_json, progress

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from outbox_pipeline.events import EventRow

#: Events held in memory at once.
_CHUNK_EVENTS = 5_000

#: Ids named in a message; `--json` has all of them.
_IDS_SHOWN = 10


@dataclass(frozen=True)
class Published:
    """What publishing a file did; `differing` are the ids already there with another type, version or context."""

    published: int
    already_there: int
    differing: list[UUID]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("publish")(publish)


def publish(
    file: Annotated[Path, typer.Argument(help="JSON Lines file; - for stdin.", callback=existing)],
    as_json: AsJson = False,
) -> None:
    """Publish a file of events, all of them in one transaction or none.

    Each line is an object with event_type and event_context (an object, kept exactly as written), and if you like
    event_id, event_date_time (ISO 8601 with offset), environment, metadata_version and trace_context. Events whose
    event_id is in the outbox already change nothing; those that it has with another type, version or context are named.
    A malformed line is named and nothing of the file is published.

    Example: `echo '{"event_type": "hello", "event_context": {"who": "world"}}' | outbox publish -`
    """
    from outbox_pipeline.event_files import read_events
    from outbox_pipeline.postgres.engine import ledger_transaction
    from outbox_pipeline.postgres.schema import check_version

    name = name_of(file)
    with ready_settings(clickhouse=False) as settings:
        engine = ledger_engine(settings)
        # The producer of the pipe may be slow; publishing locks nothing that others wait for.
        with opened(file) as stream, ledger_transaction(engine, idle_seconds=0) as connection:
            check_version(connection)
            rows = read_events(stream, name, context_max_bytes=settings.context_max_bytes)
            done = _insert(connection, rows, name)
    if as_json:
        print_json(done)
    else:
        typer.echo(f"published {done.published}, already there {done.already_there}")
    if done.differing:
        complain(_told(done.differing))


def _insert(connection: "Connection", rows: "Iterable[EventRow]", name: str) -> Published:
    from outbox_pipeline.publish import insert_events

    read = published = 0
    differing: list[UUID] = []
    with progress("events") as display:
        task = display.add_task(f"Publishing {name}", total=None, events=0)
        for chunk in _chunks(rows):
            written = insert_events(connection, chunk)
            published += written.new_count
            differing += written.differing
            read += len(chunk)
            display.update(task, events=f"{read:,}")
    return Published(published, read - published, differing)


def _told(differing: list[UUID]) -> str:
    ids = ", ".join(map(str, differing[:_IDS_SHOWN]))
    more = f" and {len(differing) - _IDS_SHOWN:,} more" if len(differing) > _IDS_SHOWN else ""
    return (
        f"The outbox has these with another type, version or context; what the file says is not published: {ids}{more}."
    )


def _chunks(rows: "Iterable[EventRow]") -> "Iterator[list[EventRow]]":
    remaining = iter(rows)
    while chunk := list(islice(remaining, _CHUNK_EVENTS)):
        yield chunk
