r"""Whatever characters an event is made of, it arrives with exactly those, or waits in quarantine with a reason.

Events are written in plain SQL here, which takes more than `publish_event` does: every text that PostgreSQL can hold
may be in the outbox.
"""

import json
from dataclasses import astuple, dataclass
from itertools import zip_longest
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once

_MOST_BYTES = 1_000_000


def deep(levels: int) -> str:
    """Return an object that holds an object, and so on."""
    return '{"in":' * levels + "{}" + "}" * levels


def long(size: int, character: str = "x") -> str:
    """Return a context of this many bytes."""
    frame = len('{"s":""}')
    return '{"s":"' + character * ((size - frame) // len(character.encode())) + '"}'


#: Contexts that arrive as they are.
CONTEXTS = [
    "{}",
    '{"astral": "😀🏴󠁧󠁢󠁳󠁣󠁴󠁿 𝒳 \U0010ffff"}',
    '{"combining": "e\u0301 \u1100\u1161 Z\u0351\u036b\u0343"}',
    '{"composed": "é", "decomposed": "e\u0301"}',
    '{"rtl": "\u202eשלום \u0627\u0644\u0633\u0644\u0627\u0645\u200f\u2066"}',
    '{"zero width": "a\u200bb\u200db\ufeffc\u2060"}',
    '{"separators": "\u2028\u2029\u0085"}',
    '{"controls": "\x7f\x80\x9f"}',
    '{"non-characters": "\ufffe\uffff\ufdd0"}',
    r'{"NUL escapes": "a\u0000b", "\u0000": 0}',
    r'{"lone surrogates": "\ud800 \udfff \udc00\ud800"}',
    r'{"pair": "\ud83d\ude00"}',
    r'{"escapes": "\"\\\/\b\f\n\r\t\u001f"}',
    '{"big": 123456789012345678901234567890, "i": 18446744073709551616, "min": -9223372036854775809}',
    '{"far": 1e400, "near": 1E-400, "tenth": 0.1, "minus": -0, "zeros": 1.10, "exact": 0.1000000000000000055511}',
    '{"e": 1E+2, "float zero": -0.0, "long": 3.14159265358979323846264338327950288}',
    deep(500),
    '{"list": ' + "[" * 500 + "]" * 500 + "}",
    '{"a": 1, "a": 2, "a": {"a": 3, "a": null}}',
    '{"": {"": ""}, " ": 1, "  ": 2}',
    '{"a.b.c": 1, "a": {"b.c": 2}, "quote\\"s": 3, "\'": 4, "`": 5, "back\\\\slash": 6}',
    '{"csv": "a,b;\\"c\\"\\r\\n", "tsv": "a\\tb\\\\N", "copy": "\\\\.", "null": "\\\\N"}',
    '{"sql": "\'; DROP TABLE event_log; --", "dollar": "$1 $$ :name %s %(name)s {x:String} {table:Identifier}"}',
    '{"json": "{\\"a\\": [1, 2]}", "html": "<script>&amp;</script>", "format": "FORMAT Values ("}',
    '  \t\r\n{ "white"  :\t[ 1 ,\n2 ] , "space":{ } }\r\n\t  ',
    '{"true": true, "false": false, "null": null, "list": [null, true, []]}',
    '{"key": 1, "KEY": 2, "Key": 3}',
    long(_MOST_BYTES),
    long(_MOST_BYTES - 1, "é"),
    '{"many": [' + ",".join(str(n) for n in range(100_000)) + "]}",
    "{" + ",".join(f'"k{n}": {n}' for n in range(10_000)) + "}",
]

#: Contexts that wait in quarantine, and why.
REFUSED_CONTEXTS = [
    ("[]", "context_not_object"),
    ("null", "context_not_object"),
    ('"{}"', "context_not_object"),
    ("1e400", "context_not_object"),
    ("\n\t true ", "context_not_object"),
    (long(_MOST_BYTES + 1), "context_too_large"),
    (long(_MOST_BYTES + 2, "é"), "context_too_large"),
]

#: Event types and environments that arrive as they are.
NAMES = [
    "tab\tnewline\nreturn\r",
    " leading and trailing ",
    "'single' \"double\" `back` \\slash\\",
    "emoji 🎉 and é e\u0301",
    "{x:Type} {table:Identifier} %s %(a)s :name $1 ?",
    "'; DROP TABLE event_log; --",
    "a" * 200,
    "ü" * 100,
    "\ufeffbom",
    "\\N",
    "NULL",
    "0",
    "\u202eright to left",
    "\x01\x02\x7f",
    "\u200b",
    "UPPER",
    "upper",
]

#: Event types that wait in quarantine: nothing but white space, of any alphabet.
BLANKS = ["", " ", "\t\n\r ", "\u00a0", "\u3000\u2003"]


@dataclass(frozen=True)
class Sent:
    """The texts of an event as they were written."""

    context: str
    event_type: str = "order_placed"
    environment: str = "test"
    trace_context: str = ""


def send(stores: Stores, events: list[Sent]) -> list[UUID]:
    """Write the events in one transaction, so that they are one batch; return their ids."""
    statement = text(
        "INSERT INTO outbox.event (event_context, event_type, environment, trace_context)"
        " VALUES (CAST(:context AS json), :event_type, :environment, :trace_context) RETURNING event_id"
    )
    with stores.engine.begin() as connection:
        return [connection.execute(statement, vars(event)).scalar_one() for event in events]


def arrived(stores: Stores, ids: list[UUID]) -> list[Sent | None]:
    """Return what ClickHouse holds of these events, None for those it does not."""
    rows = stores.client.rows(
        "SELECT event_id, event_context, event_type, environment, trace_context FROM {table:Identifier}"
        " WHERE event_id IN {ids:Array(UUID)}",
        {"ids": [str(event_id) for event_id in ids]},
    )
    found = {row.pop("event_id"): tuple(row.values()) for row in rows}
    return [Sent(*found[event_id]) if event_id in found else None for event_id in ids]


def stored(stores: Stores, ids: list[UUID]) -> list[Sent]:
    """Return the events as PostgreSQL holds them."""
    statement = text(
        "SELECT event_context::text, event_type, environment, trace_context FROM outbox.event"
        " WHERE event_id = ANY (:ids) ORDER BY position"
    )
    with stores.engine.begin() as connection:
        return [Sent(*row) for row in connection.execute(statement, {"ids": ids})]


def reasons(stores: Stores, ids: list[UUID]) -> list[list[str]]:
    """Return why each event is in quarantine; no reasons for those that are not."""
    statement = text("SELECT event_id, reasons FROM outbox.quarantined_event WHERE event_id = ANY (:ids)")
    with stores.engine.begin() as connection:
        held = {row.event_id: row.reasons for row in connection.execute(statement, {"ids": ids})}
    return [held.get(event_id, []) for event_id in ids]


def assert_same(found: list[Sent | None], wanted: list[Sent]) -> None:
    """Compare character for character; say where the first difference is, for texts may be long."""
    for number, (one, two) in enumerate(zip_longest(found, wanted)):
        assert one is not None, f"event {number} did not arrive: {str(two)[:200]}"
        for mine, other in zip(astuple(one), astuple(two), strict=True):
            at = next((i for i, (a, b) in enumerate(zip_longest(mine, other)) if a != b), None)
            assert at is None, f"event {number} differs at {at}: {mine[at:][:50]!r} instead of {other[at:][:50]!r}"


def test_each_character_arrives(stores: Stores) -> None:
    """Every context, event type, environment and trace that can be stored arrives character for character."""
    events = [Sent(context) for context in CONTEXTS]
    events += [Sent("{}", event_type=name, environment=name[::-1], trace_context=name) for name in NAMES]
    events.append(Sent("{}", event_type="ü" * 250, trace_context="🎉" * 2048))
    ids = send(stores, events)

    result = relay(stores, until_empty=True)

    assert (result.batch_count, result.failures) == (1, ())
    assert reasons(stores, ids) == [[]] * len(events)
    assert_same(list(stored(stores, ids)), events)
    assert_same(arrived(stores, ids), events)


def test_what_cannot_be_taken_waits_and_its_neighbours_arrive(stores: Stores) -> None:
    """Each refused event is held with its reason, and the good ones between them arrive untouched."""
    bad = [(Sent(context), [reason]) for context, reason in REFUSED_CONTEXTS]
    bad += [(Sent("{}", event_type=blank), ["event_type_empty"]) for blank in BLANKS]
    bad += [(Sent("{}", environment=blank), ["environment_empty"]) for blank in BLANKS]
    bad += [
        (Sent("7", event_type="", environment=" "), ["event_type_empty", "environment_empty", "context_not_object"])
    ]
    good = [Sent(context) for context in CONTEXTS[: len(bad)]]
    ids = send(stores, [event for pair in zip(good, (event for event, _ in bad), strict=True) for event in pair])

    result = relay(stores, until_empty=True)

    assert (result.batch_count, result.failures) == (1, ())
    assert reasons(stores, ids)[1::2] == [why for _, why in bad]
    assert reasons(stores, ids)[::2] == [[]] * len(good)
    assert arrived(stores, ids)[1::2] == [None] * len(bad)
    assert_same(arrived(stores, ids)[::2], good)
    assert_each_exactly_once(stores.engine, stores.client)


_TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30)
_ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)


def json_values(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Return any JSON value whose keys and texts are drawn from *texts*."""
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=12)


#: Written out, any text is fit for UTF-8; escaped, lone surrogates and NUL are too.
_CONTEXTS = st.one_of(
    st.builds(json.dumps, json_values(_TEXT), ensure_ascii=st.just(False), indent=st.sampled_from([None, 1])),
    st.builds(json.dumps, json_values(_ANY_TEXT), ensure_ascii=st.just(True)),
)
_OBJECTS = st.builds(json.dumps, st.dictionaries(_ANY_TEXT, json_values(_ANY_TEXT), max_size=4))
_EVENTS = st.builds(Sent, _CONTEXTS | _OBJECTS, event_type=_TEXT, environment=_TEXT, trace_context=_TEXT)


def is_fit(event: Sent) -> bool:
    """Tell, from what was written, whether the event should arrive."""
    return event.context.lstrip().startswith("{") and event.event_type.strip() != "" != event.environment.strip()


@settings(
    max_examples=16,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(_EVENTS, min_size=8, max_size=30))
def test_any_text_arrives_or_waits(stores: Stores, events: list[Sent]) -> None:
    """Whatever a batch is made of, fit events arrive character for character and the others are held."""
    ids = send(stores, events)

    result = relay(stores, until_empty=True)
    fit = [(event_id, event) for event_id, event in zip(ids, events, strict=True) if is_fit(event)]

    assert (result.batch_count, result.failures) == (1, ())
    assert_same(arrived(stores, [event_id for event_id, _ in fit]), [event for _, event in fit])
    assert [bool(why) for why in reasons(stores, ids)] == [not is_fit(event) for event in events]
    assert_same(list(stored(stores, ids)), events)
