"""Each reason alone and together, and every boundary to the microsecond and the byte."""

from datetime import UTC, datetime
from itertools import count
from typing import Any

import pyarrow as pa
import pytest

from outbox_pipeline import Event
from outbox_pipeline.registry import Registry
from outbox_pipeline.settings import Settings
from outbox_pipeline.validation import Reason, Rejection, Rules, validate_events
from outbox_pipeline.validation.contract import ARROW_TYPES

DEFAULTS = Rules()
DAY = 86_400_000_000
NOW = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000
# What the ADBC driver returns for timestamptz 'infinity' and '-infinity' (seen on PostgreSQL 18).
INFINITY, MINUS_INFINITY = -9_222_425_352_054_775_809, -9_222_425_352_054_775_808


def batch(*events: dict[str, Any]) -> pa.Table:
    """Return a batch of good events, each with the given values instead; positions count from 1."""
    numbers = count(1)
    rows = [good_event(next(numbers)) | event for event in events]
    return pa.table({name: column_of(name, [row[name] for row in rows]) for name in ARROW_TYPES})


def good_event(position: int) -> dict[str, Any]:
    """Return the column values of an event nothing is wrong with."""
    return {
        "position": position,
        "event_id": position.to_bytes(16, "big"),
        "event_type": "user_created",
        "event_date_time": NOW,
        "environment": "test",
        "event_context": '{"a":1}',
        "metadata_version": 1,
        "recorded_at": NOW,
        "trace_context": None,
    }


def column_of(name: str, values: list[Any]) -> pa.Array:
    """Build a column; times from integers and texts from bytes, which keeps what Python could not hold."""
    arrow_type = ARROW_TYPES[name]
    if pa.types.is_timestamp(arrow_type):
        return pa.array(values, pa.int64()).cast(arrow_type)
    if arrow_type == pa.string():
        raw = pa.array([value.encode() if isinstance(value, str) else value for value in values], pa.binary())
        return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    return pa.array(values, arrow_type)


def reasons(event: dict[str, Any], rules: Rules = DEFAULTS) -> tuple[Reason, ...]:
    """Return the reasons against one event that stands between two good ones."""
    rejections = validate_events(batch({}, event, {}), rules)
    assert [rejection.position for rejection in rejections] in ([], [2])
    return rejections[0].reasons if rejections else ()


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"event_type": ""}, Reason.EVENT_TYPE_EMPTY),
        ({"event_type": " \t\u00a0"}, Reason.EVENT_TYPE_EMPTY),
        ({"environment": ""}, Reason.ENVIRONMENT_EMPTY),
        ({"environment": "\n"}, Reason.ENVIRONMENT_EMPTY),
        ({"event_type": "a\0b"}, Reason.NUL_CHARACTER),
        ({"environment": "a\0"}, Reason.NUL_CHARACTER),
        ({"event_type": b"caf\xe9"}, Reason.INVALID_UTF8),
        ({"environment": b"\xff"}, Reason.INVALID_UTF8),
        ({"event_context": b'{"a":"\xc3"}'}, Reason.INVALID_UTF8),
        ({"trace_context": b"\xed\xa0\x80"}, Reason.INVALID_UTF8),
        ({"event_type": "x" * 501}, Reason.NAME_TOO_LONG),
        ({"event_type": "ä" * 251}, Reason.NAME_TOO_LONG),
        ({"environment": "x" * 201}, Reason.NAME_TOO_LONG),
        ({"trace_context": "x" * 8_193}, Reason.NAME_TOO_LONG),
        ({"event_date_time": -1}, Reason.TIME_BEFORE_1970),
        ({"event_date_time": MINUS_INFINITY}, Reason.TIME_BEFORE_1970),
        ({"event_date_time": -(2**63)}, Reason.TIME_BEFORE_1970),
        ({"event_date_time": NOW + DAY + 1}, Reason.TIME_TOO_FAR_AHEAD),
        ({"event_date_time": INFINITY}, Reason.TIME_TOO_FAR_AHEAD),
        ({"event_date_time": 2**63 - 1}, Reason.TIME_TOO_FAR_AHEAD),
        ({"metadata_version": 0}, Reason.METADATA_VERSION_BELOW_1),
        ({"metadata_version": -(2**63)}, Reason.METADATA_VERSION_BELOW_1),
        ({"event_context": "[1]"}, Reason.CONTEXT_NOT_OBJECT),
        ({"event_context": "null"}, Reason.CONTEXT_NOT_OBJECT),
        ({"event_context": ' "{"'}, Reason.CONTEXT_NOT_OBJECT),
        ({"event_context": "\u00a0{}"}, Reason.CONTEXT_NOT_OBJECT),
        ({"event_context": ""}, Reason.CONTEXT_NOT_OBJECT),
        ({"event_context": '{"a":"' + "x" * 1_000_000 + '"}'}, Reason.CONTEXT_TOO_LARGE),
    ],
)
def test_each_fault_gives_its_reason_alone(event: dict[str, Any], reason: Reason) -> None:
    """One fault in an event gives exactly its reason and leaves the events around it alone."""
    assert reasons(event) == (reason,)


@pytest.mark.parametrize("name", sorted(set(ARROW_TYPES) - {"trace_context", "position"}))
def test_missing_value_is_one_reason(name: str) -> None:
    """A NULL in a required column is reported once and by no other rule."""
    assert reasons({name: None}, Rules(frozenset({"user_created"}))) == (Reason.VALUE_MISSING,)


@pytest.mark.parametrize(
    "event",
    [
        {"event_date_time": 0},
        {"event_date_time": NOW + DAY},
        {"event_date_time": NOW - 20 * 365 * DAY},
        {"metadata_version": 2**63 - 1},
        {"event_context": " \t\r\n{}"},
        {"event_context": "{}"},
        {"event_type": "größe.geändert 🎉"},
        {"event_type": "ä" * 250, "environment": "e" * 200, "trace_context": "x" * 8_192},
        {"trace_context": ""},
        {"trace_context": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
    ],
)
def test_what_lies_on_the_good_side_of_a_boundary_passes(event: dict[str, Any]) -> None:
    """The limits themselves are allowed: 1970 sharp, one day ahead sharp, whitespace before the object."""
    assert reasons(event) == ()


def test_context_limit_counts_bytes_and_includes_the_limit() -> None:
    """A context of exactly the limit passes, measured in bytes of UTF-8 and not in characters."""
    context = '{"a":"äöü€🎉"}'
    size = len(context.encode())

    assert size > len(context)
    assert reasons({"event_context": context}, Rules(context_max_bytes=size)) == ()
    assert reasons({"event_context": context}, Rules(context_max_bytes=size - 1)) == (Reason.CONTEXT_TOO_LARGE,)


def test_context_limit_counts_undecodable_bytes_once() -> None:
    """Bytes that are no UTF-8 count one each, so a broken text is not also called too large."""
    context = b'{"a":"\xff\xff\xff"}'

    assert reasons({"event_context": context}, Rules(context_max_bytes=len(context))) == (Reason.INVALID_UTF8,)


def test_unknown_type_is_a_fault_only_with_a_registry() -> None:
    """Without known types every type is known; with them every other type is rejected."""
    registry = Rules(known_event_types=frozenset({"user_created"}))

    assert reasons({"event_type": "other"}) == ()
    assert reasons({"event_type": "user_created"}, registry) == ()
    assert reasons({"event_type": "User_Created"}, registry) == (Reason.EVENT_TYPE_UNKNOWN,)


def test_event_carries_all_its_reasons_in_a_fixed_order() -> None:
    """An event with many faults names every one of them, in the order of the enumeration."""
    event = {
        "event_type": b" \xff\0",
        "environment": "",
        "event_context": "[1,2,3,4]",
        "metadata_version": 0,
        "event_date_time": -1,
        "recorded_at": None,
    }
    blank = {"event_type": " ", "event_date_time": NOW + 2 * DAY}

    assert reasons(event, Rules(frozenset({"user_created"}), context_max_bytes=7)) == (
        Reason.VALUE_MISSING,
        Reason.INVALID_UTF8,
        Reason.NUL_CHARACTER,
        Reason.EVENT_TYPE_UNKNOWN,
        Reason.ENVIRONMENT_EMPTY,
        Reason.TIME_BEFORE_1970,
        Reason.METADATA_VERSION_BELOW_1,
        Reason.CONTEXT_NOT_OBJECT,
        Reason.CONTEXT_TOO_LARGE,
    )
    assert reasons(blank) == (Reason.EVENT_TYPE_EMPTY, Reason.TIME_TOO_FAR_AHEAD)


def test_recorded_at_at_the_end_of_time_does_not_overflow() -> None:
    """A day after the largest time is still the largest time, so nothing wraps into the past."""
    assert reasons({"recorded_at": 2**63 - 1, "event_date_time": 2**63 - 1}) == ()


def test_rejections_come_in_position_order() -> None:
    """Rejections are ordered by position however their reasons interleave."""
    events = [{"metadata_version": 0}, {}, {"event_type": ""}, {"metadata_version": 0, "event_type": ""}]

    rejections = validate_events(batch(*events), Rules())

    assert rejections == [
        Rejection(1, (Reason.METADATA_VERSION_BELOW_1,)),
        Rejection(3, (Reason.EVENT_TYPE_EMPTY,)),
        Rejection(4, (Reason.EVENT_TYPE_EMPTY, Reason.METADATA_VERSION_BELOW_1)),
    ]


def test_every_reason_can_occur() -> None:
    """Each reason belongs to a rule; none is a word without a meaning."""
    from outbox_pipeline.validation.rules import finders

    class Known(Event):
        """Any model."""

    assert list(finders(Rules(frozenset(), registry=Registry((Known,))))) == list(Reason)


def test_rules_follow_the_settings() -> None:
    """The registry and the size limit come from the settings; an empty registry is none."""
    settings = Settings(event_types="a, b", context_max_bytes=7)

    assert Rules.from_settings(settings) == Rules(frozenset({"a", "b"}), 7)
    assert Rules.from_settings(Settings(event_types=",")).known_event_types is None
