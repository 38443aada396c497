"""`publish_event` and `publish_events` without a session: the connection is found by its alias.

The same keywords, refusals and results as in `outbox_pipeline.publish`, in the same transaction as the ORM's work.
Async code has no transaction in Django: it awaits `sync_to_async` of a function that opens one and publishes in it.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, Unpack, overload
from uuid import UUID

from outbox_pipeline.django.connections import driver_of, other_transaction
from outbox_pipeline.events import EventRow, Publishable
from outbox_pipeline.ids import EventId
from outbox_pipeline.publish.fields import EventFields, ManyFields, row_of, rows_of
from outbox_pipeline.publish.kinds import write_through
from outbox_pipeline.publish.steps import Options, event_id_of, event_ids_of, give_up


@overload
def publish_event(
    event: Publishable,
    using: str | None = None,
    *,
    required: Literal[True] = True,
    allow_autocommit: bool = False,
    **fields: Unpack[EventFields],
) -> EventId: ...
@overload
def publish_event(
    event: Publishable,
    using: str | None = None,
    *,
    required: bool,
    allow_autocommit: bool = False,
    **fields: Unpack[EventFields],
) -> EventId | None: ...
def publish_event(
    event: Publishable,
    using: str | None = None,
    *,
    required: bool = True,
    allow_autocommit: bool = False,
    **fields: Unpack[EventFields],
) -> EventId | None:
    """Write *event* into the outbox as part of the transaction that `transaction.atomic` has opened; return its id.

    *using* is a database alias; without it the database routers decide, and without routers it is `default`.

    Raises NoTransactionError outside `transaction.atomic` unless *allow_autocommit* is given, and without *using* also
    where a transaction on another PostgreSQL database was opened later; PublishError when the event cannot be stored.
    Nothing was written then. Errors of the database are Django's.
    """
    row = row_of(event, fields, is_required=required)
    if row is not None and not _is_meant([row], using, is_required=required):
        row = None
    rows = [] if row is None else [row]
    written = write_through(using, rows, Options(required, allow_autocommit), driver_of=driver_of)
    return None if row is None else event_id_of(row, written)


@overload
def publish_events(
    events: Iterable[Publishable],
    using: str | None = None,
    *,
    required: Literal[True] = True,
    allow_autocommit: bool = False,
    **fields: Unpack[ManyFields],
) -> list[UUID]: ...
@overload
def publish_events(
    events: Iterable[Publishable],
    using: str | None = None,
    *,
    required: bool,
    allow_autocommit: bool = False,
    **fields: Unpack[ManyFields],
) -> list[UUID] | None: ...
def publish_events(
    events: Iterable[Publishable],
    using: str | None = None,
    *,
    required: bool = True,
    allow_autocommit: bool = False,
    **fields: Unpack[ManyFields],
) -> list[UUID] | None:
    """Write *events* in their order, a thousand to a round trip, and return their ids in the same order.

    `event_ids` are one for each; all other keywords hold for every event.
    """
    rows = rows_of(events, fields, is_required=required)
    if rows and not _is_meant(rows, using, is_required=required):
        rows = None
    written = write_through(using, rows or [], Options(required, allow_autocommit), driver_of=driver_of)
    return None if rows is None else event_ids_of(rows, written)


def _is_meant(rows: Sequence[EventRow], using: str | None, *, is_required: bool) -> bool:
    """Tell whether *rows* belong to the transaction they would be written in; raises NoTransactionError if required."""
    problem = other_transaction(using)
    if problem is None:
        return True
    if is_required:
        raise problem
    give_up(problem, rows[0].event_type, len(rows))
    return False
