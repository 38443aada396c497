"""Publishing through a session that is awaited: SQLAlchemy's AsyncSession and AsyncConnection, psycopg's, asyncpg's."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Unpack, overload
from uuid import UUID

from outbox_pipeline.events import Publishable
from outbox_pipeline.ids import EventId
from outbox_pipeline.publish.fields import EventFields, ManyFields, row_of, rows_of
from outbox_pipeline.publish.kinds import write_through_async
from outbox_pipeline.publish.steps import Options, event_id_of, event_ids_of

if TYPE_CHECKING:
    from outbox_pipeline.publish.kinds import AsyncSessionKind


@overload
async def publish_event_async(
    session: "AsyncSessionKind",
    event: Publishable,
    *,
    required: Literal[True] = True,
    allow_autocommit: bool = False,
    **fields: Unpack[EventFields],
) -> EventId: ...
@overload
async def publish_event_async(
    session: "AsyncSessionKind",
    event: Publishable,
    *,
    required: bool,
    allow_autocommit: bool = False,
    **fields: Unpack[EventFields],
) -> EventId | None: ...
async def publish_event_async(
    session: "AsyncSessionKind",
    event: Publishable,
    *,
    required: bool = True,
    allow_autocommit: bool = False,
    **fields: Unpack[EventFields],
) -> EventId | None:
    """Write *event* as part of the transaction of *session*, as `publish_event` does, and return its id.

    An asyncpg connection outside `connection.transaction()` is in autocommit.
    """
    row = row_of(event, fields, is_required=required)
    written = await write_through_async(session, [] if row is None else [row], Options(required, allow_autocommit))
    return None if row is None else event_id_of(row, written)


@overload
async def publish_events_async(
    session: "AsyncSessionKind",
    events: Iterable[Publishable],
    *,
    required: Literal[True] = True,
    allow_autocommit: bool = False,
    **fields: Unpack[ManyFields],
) -> list[UUID]: ...
@overload
async def publish_events_async(
    session: "AsyncSessionKind",
    events: Iterable[Publishable],
    *,
    required: bool,
    allow_autocommit: bool = False,
    **fields: Unpack[ManyFields],
) -> list[UUID] | None: ...
async def publish_events_async(
    session: "AsyncSessionKind",
    events: Iterable[Publishable],
    *,
    required: bool = True,
    allow_autocommit: bool = False,
    **fields: Unpack[ManyFields],
) -> list[UUID] | None:
    """Write *events* in their order, as `publish_events` does, and return their ids."""
    rows = rows_of(events, fields, is_required=required)
    written = await write_through_async(session, rows or [], Options(required, allow_autocommit))
    return None if rows is None else event_ids_of(rows, written)
