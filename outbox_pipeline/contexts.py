"""How values are written in a context where JSON has no type of its own for them, and what is refused.

The words are pydantic's: times in ISO 8601, without an offset where they have none, UUIDs and decimals as text, the
value of a member of an enumeration, the fields of a dataclass or model.

Invariant: nothing becomes null, a rounded number or a text that was not asked for. NaN and infinity, bytes, sets, keys
that are no strings and whatever else has no form are a PublishError, which quotes nothing.
"""

import json
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from outbox_pipeline.errors import PublishError

#: Deeper nesting is refused: PostgreSQL's parser and many readers recurse.
DEPTH_MAX = 200

#: What pydantic writes as one text. A Decimal may also be no number.
WORDS = (datetime, date, time, timedelta, UUID, Decimal)

#: In JSON text only within strings.
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")

_BYTES = (bytes, bytearray, memoryview)


def has_fields(value: object) -> bool:
    """Tell whether *value* is an object of a dataclass or of a pydantic model."""
    return isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type))


def fields_of(value: Any) -> Any:
    """Return what pydantic makes of a dataclass or model in JSON mode: of most a dict, of a RootModel anything.

    The values of a plain dataclass stay as they are.
    """
    if isinstance(value, BaseModel):
        # A warning would quote what does not fit.
        return value.model_dump(mode="json", by_alias=True, warnings=False)
    if _has_serializer(value):
        return to_jsonable_python(value, by_alias=True)
    return {field.name: getattr(value, field.name) for field in fields(value)}


def written(context: object) -> str:
    """Return the JSON text of *context*: compact, readable, and where it has a lone surrogate, in ASCII.

    Raises PublishError for what JSON has no word for, and whatever the code of a value raises.
    """
    parts = [context]
    spelled: list[Any] = []

    def spell(value: Any) -> Any:
        part = _spelled(value)
        parts.append(part)
        spelled.append(value)
        return part

    text = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=spell).encode(context)
    for part in parts:
        _check_structure(part)
    if len(parts) > 1:
        # What was spelled stands deeper in the whole than in its part.
        _check_structure(json.loads(text))
    if "null" in text:
        for value in spelled:
            refuse_vanished_floats(value)
    # Not written once more: some values can be read only once.
    return text if is_encodable(text) else _NOT_ASCII.sub(_escaped, text)


def is_encodable(text: str) -> bool:
    """Tell whether *text* has a form in UTF-8, which a lone surrogate has not."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_vanished_floats(value: Any) -> None:
    """Raise PublishError when a float of *value* became null on the way to JSON.

    In JSON mode pydantic writes null for a NaN in a model's field that is not declared as float, as the value of a
    member of an enumeration too.
    """
    if not _has_serializer(value):
        return
    for level in _levels(value.__pydantic_serializer__.to_python(value, by_alias=True, warnings=False)):
        if any(isinstance(number, float) and not math.isfinite(number) for number in level):
            raise PublishError("event_context", "has a number that is not finite")


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def _spelled(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, WORDS):
        return _word(value)
    if has_fields(value):
        return fields_of(value)
    if isinstance(value, _BYTES):
        raise PublishError("event_context", "has bytes, which JSON has no word for: give a text, such as their base64")
    raise PublishError("event_context", f"has a value of type {type(value).__name__}, which JSON has no word for")


def _word(value: Any) -> Any:
    if isinstance(value, Decimal) and not value.is_finite():
        raise PublishError("event_context", "has a number that is not finite")
    try:
        word = to_jsonable_python(value)
        # pandas' times are Python's, and more.
        is_finer = getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0)
    except Exception as error:  # noqa: BLE001 - a time that is none, or code of its zone's
        said = f"cannot be read: a {type(value).__name__} in it raises {type(error).__name__}"
        raise PublishError("event_context", said) from None
    if is_finer:
        said = f"has a {type(value).__name__} with nanoseconds, and a time in it has microseconds: round it"
        raise PublishError("event_context", said)
    return word


def _has_serializer(value: object) -> bool:
    return hasattr(type(value), "__pydantic_serializer__")


def _check_structure(context: object) -> None:
    # After json.dumps, which refuses circles; but it would quietly turn the keys 1, None and True into texts.
    for depth, level in enumerate(_levels(context)):
        if depth > DEPTH_MAX:
            raise PublishError("event_context", f"is nested deeper than {DEPTH_MAX} levels")
        for value in level:
            if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):
                raise PublishError("event_context", "has a key that is not a string")


def _levels(value: object) -> Iterator[list[object]]:
    level = [value]
    while level:
        yield level
        level = [child for parent in level for child in _children(parent)]


def _children(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        return iter(value.values())
    if isinstance(value, Enum):
        return iter([value.value])
    return iter(value if isinstance(value, list | tuple | set | frozenset | deque) else ())
