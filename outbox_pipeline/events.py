"""What an event is in Python, and the checks that turn one into the row PostgreSQL will store.

Nothing here connects to anything: `publish` writes the rows, `validation` judges them again on the way out, because
rows can also be written in plain SQL.

Invariant: an `EventRow` is fit for the outbox, and of plain values: a subclass, a time zone or a mapping may run code
of its own when it is read, so each is read once, here, and whatever that raises is a refusal. Its context is JSON text
that PostgreSQL accepts and keeps byte for byte. So whatever can be refused is refused before the caller's transaction
sees a statement.
"""

import operator
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, Unpack
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

from outbox_pipeline import contexts
from outbox_pipeline.errors import OutboxError, PublishError, first_line
from outbox_pipeline.ids import uuid7
from outbox_pipeline.names import MAX_BYTES
from outbox_pipeline.settings import default_environment, load_settings

VERSION_MAX = 2**63 - 1

#: Names almost all events have; whatever else is allowed is found out more slowly.
_PLAIN_NAME = re.compile(rf"[!-~][ -~]{{0,{min(MAX_BYTES.values()) - 1}}}")

#: Python reads and writes no longer number without being told to.
_DIGITS_MAX = 4_300
_ENDLESS_NUMBER = re.compile(rf"\d{{{_DIGITS_MAX}}}")

#: Types that are themselves and no subclass: what pydantic writes of them is meant.
_PLAIN_KEYS = frozenset({str})
_PLAIN_LEAVES = frozenset({str, int, float, bool, type(None), *contexts.WORDS})
_PLAIN_TYPES = _PLAIN_LEAVES | {dict, list, tuple}
#: More dicts and lists in one context are written more slowly.
_PLAIN_CONTAINERS_MAX = 100_000

#: Whose refusals name types and limits; the words of others may quote the event.
_WORDED = frozenset({"json", "pydantic", "outbox_pipeline"})

_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Event(BaseModel):
    """Base of an application's own events; the fields of a subclass are the event's context.

    The type is the class name in snake case and the version 1, unless the class says otherwise:
    `class OrderPaid(Event, event_type="order.paid", metadata_version=2)`. Neither is inherited by subclasses.
    Both names have underscores around them so that a context may have fields called the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    __event_type__: ClassVar[str] = ""
    __metadata_version__: ClassVar[int] = 1

    def __init_subclass__(
        cls, *, event_type: str | None = None, metadata_version: int = 1, **config: Unpack[ConfigDict]
    ) -> None:
        """Name the event's type and version; other keywords are pydantic's."""
        super().__init_subclass__(**config)
        # Pydantic makes a class Page[int] of a generic Page; it is the same event.
        if "[" not in cls.__name__:
            cls.__event_type__ = snake_case(cls.__name__) if event_type is None else event_type
            cls.__metadata_version__ = metadata_version


class Dataclass(Protocol):
    """An object of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


#: What is published: an Event, or together with an `event_type` a mapping, a dataclass or any other pydantic model.
Publishable: TypeAlias = Event | Mapping[str, Any] | BaseModel | Dataclass


class EventRow(NamedTuple):
    """One event as the outbox stores it; `event_context` is the JSON text, made once and sent as it is."""

    event_id: UUID
    event_type: str
    event_date_time: datetime
    environment: str
    event_context: str
    metadata_version: int
    trace_context: str | None


def snake_case(class_name: str) -> str:
    """Return *class_name* in lower case with underscores: `HTTPRequestFailed` becomes `http_request_failed`."""
    return _WORD_STARTS.sub("_", class_name.strip("_")).lower()


def prepare_event(
    event: Publishable,
    *,
    event_type: str | None = None,
    metadata_version: int | None = None,
    event_date_time: datetime | None = None,
    environment: str | None = None,
    event_id: UUID | str | None = None,
    trace_context: str | None = None,
) -> EventRow:
    """Return the row for *event*; arguments left out come from its class, the clock and the settings.

    All but an Event need an `event_type`. Raises PublishError naming the first field that cannot be stored and why,
    also where reading a value raises something of its own, or takes too much memory.
    """
    try:
        own_type, own_version = _class_names(event)
        metadata_version = own_version if metadata_version is None else metadata_version
        return EventRow(
            event_id=_checked_id(event_id),
            event_type=_checked_name("event_type", own_type if event_type is None else event_type),
            event_date_time=_checked_time(event_date_time),
            environment=_checked_name("environment", default_environment() if environment is None else environment),
            event_context=_checked_size(context_text(event)),
            metadata_version=_checked_version(metadata_version),
            trace_context=None if trace_context is None else _checked_text("trace_context", trace_context),
        )
    except OutboxError:
        raise
    except Exception as error:  # noqa: BLE001 - code of the values'
        raise PublishError("event", f"cannot be read: a value of it raises {type(error).__name__}") from None


def _class_names(event: object) -> tuple[str | None, int]:
    if type(event) is dict:
        return None, 1
    if isinstance(event, Event):
        return event.__event_type__, event.__metadata_version__
    if isinstance(event, Mapping) or contexts.has_fields(event):
        return None, 1
    raise PublishError(
        "event", f"must be an Event, another model, a dataclass or a mapping, not {type(event).__name__}"
    )


def prepare_events(
    events: Iterable[Publishable], *, event_ids: Iterable[UUID | str | None], **shared: Any
) -> list[EventRow]:
    """Return the rows of *events* with their *event_ids*; *shared* are keywords of `prepare_event`, for all of them.

    What events of one class share is checked once, which halves the cost of many.
    """
    firsts: dict[type, EventRow] = {}
    rows: list[EventRow] = []
    for event, event_id in zip(events, event_ids, strict=False):
        first = firsts.get(type(event))
        if first is None:
            row = firsts[type(event)] = prepare_event(event, event_id=event_id, **shared)
        else:
            row = _prepared_like(first, event, event_id, is_timed=shared.get("event_date_time") is not None)
        rows.append(row)
    return rows


def _prepared_like(first: EventRow, event: Publishable, event_id: UUID | str | None, *, is_timed: bool) -> EventRow:
    return EventRow(
        _checked_id(event_id),
        first.event_type,
        first.event_date_time if is_timed else datetime.now(UTC),
        first.environment,
        _checked_size(context_text(event)),
        first.metadata_version,
        first.trace_context,
    )


def context_text(event: Publishable) -> str:
    r"""Return the context of *event* as compact JSON text.

    Integers keep every digit. Times, UUIDs, Decimals, enumerations, dataclasses and models are written as pydantic
    writes them, in a mapping as in an Event. A lone surrogate has no UTF-8 form and is written as its escape, like
    `\u0000`. Raises PublishError for anything JSON has no word for.
    """
    try:
        # A dict is the common case, and asking pydantic's classes who is theirs is slow.
        if type(event) is dict:
            return _plain_text(event) or contexts.written(event)
        context = _context_of(event)
        text = _plain_text(context) or contexts.written(context)
        if "null" in text:
            contexts.refuse_vanished_floats(event)
    except PublishError:
        raise
    except Exception as error:  # noqa: BLE001 - code of the values'
        raise PublishError("event_context", _why_unwritable(error)) from None
    return text


def _context_of(event: Any) -> dict[str, Any]:
    context = contexts.fields_of(event) if contexts.has_fields(event) else dict(event)
    if not isinstance(context, dict):
        raise PublishError("event", f"must have fields, and {type(event).__name__} is written as something else")
    return context


def _why_unwritable(error: Exception) -> str:
    cause = error if error.__cause__ is None else error.__cause__
    if isinstance(cause, RecursionError):
        return "is nested too deeply, or holds itself"
    if isinstance(cause, MemoryError):
        return "takes more memory than this process has"
    if cause is error and isinstance(error, TypeError | ValueError) and _raised_in(error) in _WORDED:
        return first_line(error)
    return f"cannot be read: a value of it raises {type(cause).__name__}"


def _raised_in(error: Exception) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = None if traceback is None else traceback.tb_frame.f_globals.get("__name__")
    return str(module).partition(".")[0]


def _plain_text(context: dict[str, Any]) -> str | None:
    # Five times faster than json, but it would write more than JSON knows: so only for what both write alike. Asked
    # before anything is written, because some values can be read only once.
    if not _is_plain(context):
        return None
    try:
        text = to_json(context).decode()
    except ValueError:
        return None
    # Each level opens and closes, so a short text needs no counting.
    is_shallow = len(text) <= 2 * contexts.DEPTH_MAX or text.count("{") + text.count("[") <= contexts.DEPTH_MAX
    is_finite = "NaN" not in text and "Infinity" not in text
    is_readable = len(text) < _DIGITS_MAX or not _ENDLESS_NUMBER.search(text)
    return text if is_shallow and is_finite and is_readable else None


def _is_plain(context: dict[str, Any]) -> bool:
    remaining: list[Any] = [context]
    for value in remaining:
        children = value
        if type(value) is dict:
            if not _PLAIN_KEYS.issuperset(map(type, value)):
                return False
            children = value.values()
        if not _PLAIN_LEAVES.issuperset(map(type, children)):
            if not _PLAIN_TYPES.issuperset(map(type, children)):
                return False
            remaining.extend(child for child in children if type(child) not in _PLAIN_LEAVES)
            # A circle has no end.
            if len(remaining) > _PLAIN_CONTAINERS_MAX:
                return False
    return True


def _checked_size(text: str) -> str:
    size = _size(text)
    if size > _context_max_bytes():
        raise PublishError("event_context", f"has {size} bytes, more than OUTBOX_CONTEXT_MAX_BYTES allows")
    return text


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


@lru_cache(maxsize=1)
def _context_max_bytes() -> int:
    return load_settings().context_max_bytes


def _checked_name(field: str, value: object) -> str:
    if value is None:
        raise PublishError(field, "is missing: an Event class has one, with anything else give it as a keyword")
    if type(value) is str and _PLAIN_NAME.fullmatch(value):
        return value
    text = _checked_text(field, value)
    if not text.strip():
        raise PublishError(field, "must not be empty")
    return text


def _checked_text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise PublishError(field, f"must be a string, not {type(value).__name__}")
    # A member of a string enumeration is written as its value; drivers know only plain strings.
    text = str.__str__(value)
    if "\0" in text or not contexts.is_encodable(text):
        raise PublishError(field, "must not contain NUL or lone surrogates")
    size = _size(text)
    if size > MAX_BYTES[field]:
        raise PublishError(field, f"has {size:,} bytes in UTF-8, more than the {MAX_BYTES[field]:,} it may have")
    return text


def _checked_version(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise PublishError("metadata_version", f"must be an integer, not {type(value).__name__}")
    version = operator.index(value)
    if not 1 <= version <= VERSION_MAX:
        raise PublishError("metadata_version", f"must lie between 1 and {VERSION_MAX}")
    return version


def _checked_time(value: object) -> datetime:
    if value is None:
        return datetime.now(UTC)
    if type(value) is datetime and value.tzinfo is UTC:
        return value
    if not isinstance(value, datetime):
        raise PublishError("event_date_time", f"must be a datetime, not {type(value).__name__}")
    try:
        offset = value.utcoffset()
        if offset is not None:
            return _plain(value) - offset
    except OverflowError:
        raise PublishError("event_date_time", "lies before the year 1 or after the year 9999 in UTC") from None
    except Exception as error:  # noqa: BLE001 - code of the time's or of its zone's
        said = f"is no time: reading this {type(value).__name__} raises {type(error).__name__}"
        raise PublishError("event_date_time", said) from None
    raise PublishError("event_date_time", "must have a time zone, like datetime.now(UTC)")


def _plain(value: datetime) -> datetime:
    # PostgreSQL reads no offset of 16 hours or of microseconds, so what is written is in UTC.
    return datetime(
        value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond, tzinfo=UTC
    )


def _checked_id(value: object) -> UUID:
    if value is None:
        return uuid7()
    if type(value) is UUID:
        return value
    try:
        if isinstance(value, UUID):
            return UUID(int=value.int)
        if isinstance(value, str):
            return UUID(value)
    except Exception:  # noqa: BLE001 - code of the value's
        raise PublishError("event_id", "must be a UUID") from None
    raise PublishError("event_id", f"must be a UUID, not {type(value).__name__}")
