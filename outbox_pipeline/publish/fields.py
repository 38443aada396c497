"""The keywords an event can be published with, and how a call's events become rows.

An event that is given no trace context gets the one it is published in, read from libraries that the application uses
already: OpenTelemetry's current span as a W3C `traceparent`; without a span, the correlation id or request id that
structlog's context variables hold, as `correlation_id=…` or `request_id=…`. Nothing is imported for it.

Invariant: every event of a call is checked here before the first statement, and with best effort whatever that raises
is a line in the log. An unknown keyword is a TypeError and never passes as an event's field. Looking for a trace never
fails a call: an id that is no short plain text is left out, and so is one that cannot be read.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypedDict
from uuid import UUID

from outbox_pipeline.counts import counted
from outbox_pipeline.errors import PublishError
from outbox_pipeline.events import Event, EventRow, Publishable, prepare_event, prepare_events
from outbox_pipeline.names import shortened
from outbox_pipeline.publish.steps import give_up


class SharedFields(TypedDict, total=False):
    """Keywords that hold for every event of a call; each wins over the event's class and the settings."""

    event_type: str | None
    metadata_version: int | None
    event_date_time: datetime | None
    environment: str | None
    trace_context: str | None


class EventFields(SharedFields, total=False):
    """Keywords of one event."""

    event_id: UUID | str | None


class ManyFields(SharedFields, total=False):
    """Keywords of many events; `event_ids` are as many as the events, in their order."""

    event_ids: Iterable[UUID | str] | None


_ONE = frozenset(EventFields.__annotations__)
_MANY = frozenset(ManyFields.__annotations__)

#: Names looked for among structlog's context variables, the first one wins.
CORRELATION_NAMES = ("correlation_id", "request_id")

_ID = re.compile(r"[!-~]{1,200}")


def row_of(event: Publishable, fields: EventFields, *, is_required: bool) -> EventRow | None:
    """Return the row of *event*, None when none can be made and it is not required.

    Raises PublishError when it is refused and required, SettingsError when the environment cannot be read, TypeError
    for an unknown keyword.
    """
    _refuse_unknown(fields, _ONE)
    try:
        return prepare_event(event, **_with_trace(fields))
    except Exception as error:
        if is_required:
            raise
        give_up(error, _type_of(event, fields), 1)
        return None


def rows_of(events: Iterable[Publishable], fields: ManyFields, *, is_required: bool) -> list[EventRow] | None:
    """Return the rows of *events*, None when one of them cannot be made and they are not required; raises as `row_of`.

    What the iterable itself raises, with required events, is the caller's own and comes as it is.
    """
    _refuse_unknown(fields, _MANY)
    taken: list[Publishable] = []
    try:
        taken.extend(events)
        return _checked_rows(taken, fields)
    except Exception as error:
        if is_required:
            raise
        # How many more an iterable that raises would have had, nothing tells.
        give_up(error, _type_of(taken[0] if taken else None, fields), len(taken) or 1)
        return None


def _checked_rows(events: list[Publishable], fields: ManyFields) -> list[EventRow]:
    shared: dict[str, Any] = _with_trace(fields)
    given_ids = shared.pop("event_ids", None)
    event_ids = [None] * len(events) if given_ids is None else list(given_ids)
    if len(event_ids) != len(events):
        raise PublishError("event_ids", f"are {len(event_ids)} for {counted(len(events), 'event')}")
    return prepare_events(events, event_ids=event_ids, **shared)


def _with_trace(fields: EventFields | ManyFields) -> dict[str, Any]:
    given = {**fields}
    if given.get("trace_context") is None:
        given["trace_context"] = current_trace()
    return given


def _refuse_unknown(fields: EventFields | ManyFields, known: frozenset[str]) -> None:
    for name in fields:
        if name not in known:
            raise TypeError(f"{name} is no keyword of this call; it takes {', '.join(sorted(known))}.")


def _type_of(event: object, fields: Mapping[str, Any]) -> str | None:
    # Told of an event that could not be read, so nothing of it is called.
    named = fields.get("event_type")
    if named is None and issubclass(type(event), Event):
        named = type(event).__event_type__  # type: ignore[attr-defined]
    return shortened(str.__str__(named)) if issubclass(type(named), str) else None


def current_trace() -> str | None:
    """Return the trace context of the code that is running, None when there is none or it cannot be read."""
    try:
        return _traceparent() or _correlation()
    except Exception:  # noqa: BLE001 - the code of other libraries; a trace is no reason for a call to fail
        return None


def _traceparent() -> str | None:
    # https://www.w3.org/TR/trace-context/#traceparent-header
    opentelemetry: Any = sys.modules.get("opentelemetry.trace")
    if opentelemetry is None:
        return None
    span = opentelemetry.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def _correlation() -> str | None:
    contextvars: Any = sys.modules.get("structlog.contextvars")
    if contextvars is None:
        return None
    variables = contextvars.get_contextvars()
    for name in CORRELATION_NAMES:
        value = variables.get(name)
        text = "" if value is None else str(value)
        if _ID.fullmatch(text):
            return f"{name}={text}"
    return None
