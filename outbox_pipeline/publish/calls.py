"""Publishing through a session that is called: SQLAlchemy's Session and Connection, psycopg's Connection."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Unpack, overload
from uuid import UUID

from outbox_pipeline.events import EventRow, Publishable
from outbox_pipeline.ids import EventId
from outbox_pipeline.publish.fields import EventFields, ManyFields, row_of, rows_of
from outbox_pipeline.publish.kinds import write_through
from outbox_pipeline.publish.steps import Options, event_id_of, event_ids_of
from outbox_pipeline.published import Written

if TYPE_CHECKING:
    from outbox_pipeline.publish.kinds import SyncSession


@overload
def publish_event(
    session: "SyncSession",
    event: Publishable,
    *,
    required: Literal[True] = True,
    allow_autocommit: bool = False,
    **fields: Unpack[EventFields],
) -> EventId: ...
@overload
def publish_event(
    session: "SyncSession",
    event: Publishable,
    *,
    required: bool,
    allow_autocommit: bool = False,
    **fields: Unpack[EventFields],
) -> EventId | None: ...
def publish_event(
    session: "SyncSession",
    event: Publishable,
    *,
    required: bool = True,
    allow_autocommit: bool = False,
    **fields: Unpack[EventFields],
) -> EventId | None:
    """Write *event* into the outbox as part of the transaction of *session* and return its id.

    *event* is an Event, or with an `event_type` a mapping, a dataclass or another pydantic model. Further keywords are
    `metadata_version`, `event_date_time` (aware, now by default), `environment`, `event_id` and `trace_context`.
    With an `event_id` of your own, publishing it again does nothing, and the id that is returned says so: `is_repeat`,
    and `differs` when the event that is there is of another type, version or context. Without one a UUID version 7 is
    drawn.

    With `required=False` the business comes first: an event that cannot be made or written, for whatever reason, is
    logged and counted, None is returned, and the transaction goes on, which the server has confirmed by then.
    `allow_autocommit=True` accepts a connection on which the event is committed at once, alone.

    Raises PublishError when the event cannot be stored, and NoTransactionError on a connection in autocommit, also with
    `required=False`; in both cases nothing was written and the transaction can go on. Errors of the database come as
    the library's own.
    """
    row = row_of(event, fields, is_required=required)
    written = write_through(session, [] if row is None else [row], Options(required, allow_autocommit))
    return None if row is None else event_id_of(row, written)


@overload
def publish_events(
    session: "SyncSession",
    events: Iterable[Publishable],
    *,
    required: Literal[True] = True,
    allow_autocommit: bool = False,
    **fields: Unpack[ManyFields],
) -> list[UUID]: ...
@overload
def publish_events(
    session: "SyncSession",
    events: Iterable[Publishable],
    *,
    required: bool,
    allow_autocommit: bool = False,
    **fields: Unpack[ManyFields],
) -> list[UUID] | None: ...
def publish_events(
    session: "SyncSession",
    events: Iterable[Publishable],
    *,
    required: bool = True,
    allow_autocommit: bool = False,
    **fields: Unpack[ManyFields],
) -> list[UUID] | None:
    """Write *events* in their order, a thousand to a round trip, and return their ids in the same order.

    The keywords are those of `publish_event` and apply to every event, but for `event_ids`: one for each event.
    All are checked before the first is written, and all are written or, with `required=False`, perhaps none.
    """
    rows = rows_of(events, fields, is_required=required)
    written = write_through(session, rows or [], Options(required, allow_autocommit))
    return None if rows is None else event_ids_of(rows, written)


def insert_events(session: "SyncSession", rows: Sequence[EventRow]) -> Written:
    """Insert *rows* and return what they were; those whose `event_id` the outbox already has are left out.

    Raises NoTransactionError on a connection in autocommit, where a failing page would leave earlier ones behind.
    """
    return write_through(session, rows, Options()) or Written(0)
