"""Read events from JSON Lines files, one object a line.

Invariant: an event's context is the text between the file's own braces, character for character. It is decoded to
find where it ends and never encoded again, so `1.10`, `1e400`, long integers, doubled keys and spaces survive.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO, NoReturn

from outbox_pipeline.contexts import DEPTH_MAX
from outbox_pipeline.errors import OutboxError, PublishError
from outbox_pipeline.events import EventRow, context_text, prepare_event

#: What a line may hold; the first two must be there.
KEYS = (
    "event_type",
    "event_context",
    "event_id",
    "event_date_time",
    "environment",
    "metadata_version",
    "trace_context",
)
_REQUIRED = KEYS[:2]

#: A longer line is refused before it is read whole: a file that is no JSON Lines file may be one line.
LINE_MAX_BYTES = 256_000_000

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\n\r]*")
_NO_DEFAULTS: Mapping[str, Any] = {}


class EventFileError(OutboxError):
    """A line that is no event; its file, number and reason are the message."""

    def __init__(self, name: str, line_number: int, reason: str) -> None:
        """Name the place as compilers do: `FILE:LINE: reason`."""
        super().__init__(f"{name}:{line_number}: {reason.rstrip('.')}. Nothing of this file was published.")
        self.line_number = line_number


def read_events(stream: BinaryIO, name: str, *, context_max_bytes: int) -> Iterator[EventRow]:
    """Yield the events of *stream* in their order, reading one line at a time; blank lines are passed over.

    Raises EventFileError naming *name* and the first line that is no event.
    """
    for line_number, line in enumerate(iter(lambda: stream.readline(LINE_MAX_BYTES + 1), b""), start=1):
        try:
            text = _decoded(line.removeprefix(_BYTE_ORDER_MARK) if line_number == 1 else line)
            if _SPACE.fullmatch(text):
                continue
            row = parse_event(text, context_max_bytes=context_max_bytes)
        except (PublishError, ValueError) as error:
            raise EventFileError(name, line_number, str(error)) from error
        yield row


def read_event(
    stream: BinaryIO, name: str, *, context_max_bytes: int, defaults: Mapping[str, Any] = _NO_DEFAULTS
) -> EventRow:
    """Return the one event of *stream*, written on one line or on several; *defaults* are for keys it does not have.

    Raises EventFileError when it is no event, or more than one.
    """
    try:
        text = _decoded(stream.read(LINE_MAX_BYTES + 1).removeprefix(_BYTE_ORDER_MARK))
        return parse_event(text, context_max_bytes=context_max_bytes, defaults=defaults)
    except (PublishError, ValueError) as error:
        raise EventFileError(name, 1, str(error)) from error


def parse_event(line: str, *, context_max_bytes: int, defaults: Mapping[str, Any] = _NO_DEFAULTS) -> EventRow:
    """Return the row for one line. Raises PublishError or ValueError with what is wrong with it."""
    try:
        values, context = _members(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise PublishError("event_context", f"is nested deeper than {DEPTH_MAX} levels") from error
    values = {**defaults, **values}
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be given")
    _check_context(context, values.pop("event_context"), max_bytes=context_max_bytes)
    moment = values.pop("event_date_time", None)
    row = prepare_event({}, event_date_time=None if moment is None else _moment(moment), **values)
    return row._replace(event_context=context)


def _decoded(line: bytes) -> str:
    if len(line) > LINE_MAX_BYTES:
        raise ValueError(f"is longer than {LINE_MAX_BYTES} bytes: is this a JSON Lines file?")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: byte {line[error.start]:#04x} at column {error.start + 1}") from error


def _members(line: str) -> tuple[dict[str, Any], str]:
    """Return the values of the line's object by key, and the context as it is written."""
    values: dict[str, Any] = {}
    context = ""
    index = _after(line, "{", 0)
    while line[index : index + 1] != "}" or values:
        key, index = _key(line, index)
        if key in values:
            raise ValueError(f"{key} is given twice")
        start = _after(line, ":", index)
        values[key], end = (_CONTEXT if key == "event_context" else _OTHERS).raw_decode(line, start)
        if key == "event_context":
            context = line[start:end]
        index = _skip(line, end)
        if line[index : index + 1] == "}":
            break
        index = _after(line, ",", index)
    if _skip(line, index + 1) != len(line):
        raise json.JSONDecodeError("Something follows the object", line, index + 1)
    return values, context


def _key(line: str, index: int) -> tuple[str, int]:
    if line[index : index + 1] != '"':
        raise json.JSONDecodeError("Expecting a key in double quotes", line, index)
    key, end = _OTHERS.raw_decode(line, index)
    if key not in KEYS:
        raise ValueError(f"the key {json.dumps(key[:50])} is not known; known are {', '.join(KEYS)}")
    return key, end


def _after(line: str, mark: str, index: int) -> int:
    index = _skip(line, index)
    if line[index : index + 1] != mark:
        raise json.JSONDecodeError(f"Expecting '{mark}'", line, index)
    return _skip(line, index + 1)


def _skip(line: str, index: int) -> int:
    space = _SPACE.match(line, index)
    return space.end() if space else index


def _check_context(text: str, value: object, *, max_bytes: int) -> None:
    if not isinstance(value, dict):
        raise PublishError("event_context", "must be a JSON object")
    size = len(text.encode())
    if size > max_bytes:
        raise PublishError("event_context", f"has {size} bytes, more than OUTBOX_CONTEXT_MAX_BYTES allows")
    if text.count("{") + text.count("[") > DEPTH_MAX:
        context_text(value)


def _moment(value: object) -> datetime:
    if not isinstance(value, str):
        raise PublishError("event_date_time", "must be a text like 2026-01-31T12:00:00+00:00")
    try:
        return datetime.fromisoformat(value)
    except ValueError as error:
        raise PublishError("event_date_time", "must be ISO 8601 like 2026-01-31T12:00:00+00:00") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"is not valid JSON: there is no number {name}")


# The context's numbers stay text: only the place where they end is wanted, and digits beyond 4,300 have no int.
_CONTEXT = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_refuse_constant)
_OTHERS = json.JSONDecoder(parse_constant=_refuse_constant)
