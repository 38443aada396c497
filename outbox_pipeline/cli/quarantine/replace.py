"""The command `quarantine replace`: a corrected event in place of one that validation refused.

Invariant: nothing is published before the held event and what will stand in its place were shown and agreed to.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outbox_pipeline.cli.quarantine.options import OPTIONS
from outbox_pipeline.cli.support.asking import require_agreement
from outbox_pipeline.cli.support.engines import ledger_engine, ready_settings
from outbox_pipeline.cli.support.files import existing, name_of, opened
from outbox_pipeline.cli.support.output import AsJson, print_json, shown
from outbox_pipeline.errors import QuarantineError
from outbox_pipeline.names import shortened

if TYPE_CHECKING:
    from outbox_pipeline.events import EventRow
    from outbox_pipeline.operations.quarantine import Content


def replace(
    name: Annotated[str, typer.Argument(metavar="ID", help="The held event's id, or its number in quarantine.")],
    *,
    file: Annotated[
        Path, typer.Option("--with", help="JSON file with the corrected event; - for stdin.", callback=existing)
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before publishing it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish a corrected event in place of a held one, which is then `replaced` and names the new one.

    The file holds one object as `outbox publish` reads them: event_context must be there; event_type, environment,
    event_date_time and metadata_version are those of the held event unless the file gives them. Both changes are made
    in one transaction. The next batch validates the corrected event and delivers it.

    Example: `outbox quarantine replace EVENT_ID --with corrected.json`, with an id of `outbox quarantine list`
    """
    from outbox_pipeline.operations import quarantine

    wanted = quarantine.parse_filter([name], names=OPTIONS)
    with ready_settings(clickhouse=False) as settings:
        engine = ledger_engine(settings)
        chosen = quarantine.preview(engine, wanted).wanted
        held = quarantine.show(engine, wanted).content
        if held is None:
            raise QuarantineError(f"The row of {name} is gone from outbox.event: use 'outbox publish'.")
        corrected = _read(file, held, context_max_bytes=settings.context_max_bytes)
        if not yes:
            typer.echo(_comparison(held, corrected), err=True)
            require_agreement("Publish it, and call the held event replaced?")
        timeout = settings.lock_timeout_seconds
        event_id = quarantine.replace(engine, chosen, corrected, lock_timeout_seconds=timeout)
    if as_json:
        print_json({"replaced": held.event_id, "replaced_by": event_id})
    else:
        typer.echo(f"replaced {held.event_id} by {event_id}")


def _read(file: Path, held: "Content", *, context_max_bytes: int) -> "EventRow":
    from outbox_pipeline.event_files import read_event

    names = ("event_type", "environment", "event_date_time", "metadata_version")
    defaults = {name: getattr(held, name) for name in names}
    with opened(file) as stream:
        return read_event(stream, name_of(file), context_max_bytes=context_max_bytes, defaults=defaults)


def _comparison(held: "Content", corrected: "EventRow") -> str:
    names = ("event_id", "event_type", "environment", "event_date_time", "metadata_version")
    lines = [f"{name}: {_shown(held, name)} → {_shown(corrected, name)}" for name in names]
    size = len(corrected.event_context.encode())
    return "\n".join([*lines, f"event_context: {held.context_bytes:,} → {size:,} bytes"])


def _shown(event: "Content | EventRow", name: str) -> str:
    return shown(shortened(str(getattr(event, name))))
