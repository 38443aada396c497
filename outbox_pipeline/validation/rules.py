"""What makes an event unfit for ClickHouse: one function per reason, each over a whole batch at once.

A rule returns a mask, true where the event is bad and false or null where it is not; a missing value is the
business of `VALUE_MISSING` alone. Rules never see each other, so an event collects every reason that applies.
They read times as microseconds since 1970 and build no timestamps, which ±infinity would not survive.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from typing import Self

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from outbox_pipeline.names import MAX_BYTES
from outbox_pipeline.registry import Registry, load_registry
from outbox_pipeline.settings import Settings
from outbox_pipeline.validation.contract import MODEL_PROBLEM, REQUIRED

#: How far an event's time may lie after `recorded_at`, in microseconds: one day.
AHEAD_MAX_US = 86_400_000_000

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
# PostgreSQL counts microseconds from 2000-01-01; its `-infinity`, the smallest int64, counted from 1970.
_MINUS_INFINITY_US = _INT64_MIN + 946_684_800_000_000

_JSON_WHITESPACE = " \t\n\r"


class Reason(StrEnum):
    """Why an event was rejected; the values are stored in the quarantine and do not change."""

    VALUE_MISSING = "value_missing"
    """A column every event must have is NULL."""
    INVALID_UTF8 = "invalid_utf8"
    """A text is not valid UTF-8, which a database in SQL_ASCII lets through."""
    NUL_CHARACTER = "nul_character"
    """The event type or the environment contains U+0000."""
    NAME_TOO_LONG = "name_too_long"
    """The event type, the environment or the trace context has more bytes than `names.MAX_BYTES`."""
    EVENT_TYPE_EMPTY = "event_type_empty"
    """The event type is empty or only whitespace."""
    EVENT_TYPE_UNKNOWN = "event_type_unknown"
    """The event type is not among those configured in OUTBOX_EVENT_TYPES."""
    ENVIRONMENT_EMPTY = "environment_empty"
    """The environment is empty or only whitespace."""
    TIME_BEFORE_1970 = "time_before_1970"
    """The event's time is before 1970-01-01T00:00:00Z, `-infinity` included."""
    TIME_TOO_FAR_AHEAD = "time_too_far_ahead"
    """The event's time is more than a day after the database recorded it, `infinity` included."""
    METADATA_VERSION_BELOW_1 = "metadata_version_below_1"
    """The metadata version is zero or negative."""
    METADATA_VERSION_UNKNOWN = "metadata_version_unknown"
    """The type has models in OUTBOX_EVENT_MODULES, but none of this metadata version."""
    CONTEXT_NOT_OBJECT = "context_not_object"
    """The context is JSON but no object: an array, a text, a number, true, false or null."""
    CONTEXT_TOO_LARGE = "context_too_large"
    """The context's text is longer than OUTBOX_CONTEXT_MAX_BYTES."""
    MODEL = "model"
    """The context does not fit the model of its type and version; what is wrong follows after a colon."""


@dataclass(frozen=True)
class Rules:
    """The limits an event is validated with.

    `known_event_types` None means every type is known; `context_max_bytes` counts the UTF-8 text as stored. Types
    without a model in `registry` are not validated with one.
    """

    known_event_types: frozenset[str] | None = None
    context_max_bytes: int = 1_000_000
    registry: Registry = field(default_factory=Registry)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the rules *settings* ask for; an empty list of event types is no list.

        Raises ConfigurationError when the application's models cannot be loaded.
        """
        registry = load_registry(settings.event_modules or ())
        return cls(settings.event_types or None, settings.context_max_bytes, registry)


Find = Callable[[pd.DataFrame, Rules], pa.ChunkedArray]


def _column(frame: pd.DataFrame, name: str) -> pa.ChunkedArray:
    # The protocol method hands over pandas' own Arrow array; going through pa.array() may copy.
    stored = frame[name].array.__arrow_array__()
    return stored if isinstance(stored, pa.ChunkedArray) else pa.chunked_array([stored])


def _microseconds(frame: pd.DataFrame, name: str) -> pa.ChunkedArray:
    return _column(frame, name).cast(pa.int64())


def _where_text(column: pa.ChunkedArray, is_bad: Callable[[pa.Array], pa.Array]) -> pa.ChunkedArray:
    # Types and environments repeat: each distinct text is judged once.
    distinct = pc.unique(column).drop_null()
    bad = distinct.filter(is_bad(distinct))
    # To look each row up among no texts takes as long as among many.
    return pc.is_in(column, value_set=bad) if len(bad) else pa.chunked_array([pa.repeat(False, len(column))])


def _is_blank(texts: pa.Array) -> pa.Array:
    return pc.equal(pc.utf8_trim_whitespace(texts), "")


def _has_nul(texts: pa.Array) -> pa.Array:
    return pc.match_substring(texts, "\0")


def _any_of(masks: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    return reduce(pc.or_kleene, masks)


def _value_missing(frame: pd.DataFrame, _rules: Rules) -> pa.ChunkedArray:
    return _any_of([pc.is_null(_column(frame, name)) for name in REQUIRED])


def _invalid_utf8(frame: pd.DataFrame, _rules: Rules) -> pa.ChunkedArray:
    return pc.invert(_column(frame, "is_utf8"))


def _nul_character(frame: pd.DataFrame, _rules: Rules) -> pa.ChunkedArray:
    return _any_of([_where_text(_column(frame, name), _has_nul) for name in ("event_type", "environment")])


def _name_too_long(frame: pd.DataFrame, _rules: Rules) -> pa.ChunkedArray:
    return _any_of([pc.greater(pc.binary_length(_column(frame, name)), limit) for name, limit in MAX_BYTES.items()])


def _event_type_empty(frame: pd.DataFrame, _rules: Rules) -> pa.ChunkedArray:
    return _where_text(_column(frame, "event_type"), _is_blank)


def _event_type_unknown(frame: pd.DataFrame, rules: Rules) -> pa.ChunkedArray:
    known = pa.array(sorted(rules.known_event_types or ()), pa.string())
    return _where_text(_column(frame, "event_type"), lambda texts: pc.invert(pc.is_in(texts, value_set=known)))


def _environment_empty(frame: pd.DataFrame, _rules: Rules) -> pa.ChunkedArray:
    return _where_text(_column(frame, "environment"), _is_blank)


def _has_wrapped(times: pa.ChunkedArray) -> pa.ChunkedArray:
    # Counting `infinity`, or a year past 294246, from 1970 overflows int64 and ends up below `-infinity`.
    return pc.and_(pc.less(times, _MINUS_INFINITY_US), pc.greater(times, _INT64_MIN))


def _time_before_1970(frame: pd.DataFrame, _rules: Rules) -> pa.ChunkedArray:
    times = _microseconds(frame, "event_date_time")
    return pc.and_not(pc.less(times, 0), _has_wrapped(times))


def _time_too_far_ahead(frame: pd.DataFrame, _rules: Rules) -> pa.ChunkedArray:
    times = _microseconds(frame, "event_date_time")
    recorded = pc.min_element_wise(_microseconds(frame, "recorded_at"), _INT64_MAX - AHEAD_MAX_US, skip_nulls=False)
    return pc.or_kleene(pc.greater(times, pc.add(recorded, AHEAD_MAX_US)), _has_wrapped(times))


def _metadata_version_below_1(frame: pd.DataFrame, _rules: Rules) -> pa.ChunkedArray:
    return pc.less(_column(frame, "metadata_version"), 1)


def _metadata_version_unknown(frame: pd.DataFrame, rules: Rules) -> pa.ChunkedArray:
    types, versions = _column(frame, "event_type"), _column(frame, "metadata_version")
    is_unknown = pa.chunked_array([pa.repeat(False, len(frame))])
    for event_type in rules.registry.versions.keys() & set(pc.unique(types).to_pylist()):
        known = pa.array(rules.registry.versions[event_type], pa.int64())
        is_other = pc.and_(pc.is_valid(versions), pc.invert(pc.is_in(versions, value_set=known)))
        is_unknown = pc.or_kleene(is_unknown, pc.and_kleene(pc.equal(types, event_type), is_other))
    return is_unknown


def _context_not_object(frame: pd.DataFrame, _rules: Rules) -> pa.ChunkedArray:
    # PostgreSQL has parsed the text already, so its first character tells what kind of JSON it is.
    contexts = _column(frame, "event_context")
    suspects = pc.invert(pc.starts_with(contexts, "{"))
    if not pc.any(suspects).as_py():
        return suspects
    stripped = pc.ascii_ltrim(pc.if_else(suspects, contexts, "{"), characters=_JSON_WHITESPACE)
    return pc.invert(pc.starts_with(stripped, "{"))


def _context_too_large(frame: pd.DataFrame, rules: Rules) -> pa.ChunkedArray:
    return pc.greater(pc.binary_length(_column(frame, "event_context")), rules.context_max_bytes)


def _model(frame: pd.DataFrame, _rules: Rules) -> pa.ChunkedArray:
    return pc.is_valid(_column(frame, MODEL_PROBLEM))


_FINDERS: dict[Reason, Find] = {
    Reason.VALUE_MISSING: _value_missing,
    Reason.INVALID_UTF8: _invalid_utf8,
    Reason.NUL_CHARACTER: _nul_character,
    Reason.NAME_TOO_LONG: _name_too_long,
    Reason.EVENT_TYPE_EMPTY: _event_type_empty,
    Reason.EVENT_TYPE_UNKNOWN: _event_type_unknown,
    Reason.ENVIRONMENT_EMPTY: _environment_empty,
    Reason.TIME_BEFORE_1970: _time_before_1970,
    Reason.TIME_TOO_FAR_AHEAD: _time_too_far_ahead,
    Reason.METADATA_VERSION_BELOW_1: _metadata_version_below_1,
    Reason.METADATA_VERSION_UNKNOWN: _metadata_version_unknown,
    Reason.CONTEXT_NOT_OBJECT: _context_not_object,
    Reason.CONTEXT_TOO_LARGE: _context_too_large,
    Reason.MODEL: _model,
}


def finders(rules: Rules) -> dict[Reason, Find]:
    """Return the rules that apply, by reason; without a list of known types no type can be unknown."""
    idle = set() if rules.known_event_types is not None else {Reason.EVENT_TYPE_UNKNOWN}
    if not rules.registry.models:
        idle |= {Reason.METADATA_VERSION_UNKNOWN, Reason.MODEL}
    return {reason: find for reason, find in _FINDERS.items() if reason not in idle}


def readable(frame: pd.DataFrame, rules: Rules) -> pa.ChunkedArray:
    """Return which contexts a model may be asked about: objects in valid UTF-8 within the size."""
    unfit = [find(frame, rules) for find in (_invalid_utf8, _context_not_object, _context_too_large)]
    return pc.invert(pc.fill_null(_any_of(unfit), True))
