"""What becomes of an event before anything is written: its name, its context byte for byte, and what is refused."""

import enum
import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar
from uuid import UUID, uuid4

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel, computed_field
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import to_json

from outbox_pipeline import events
from outbox_pipeline.contexts import DEPTH_MAX
from outbox_pipeline.errors import PublishError, SettingsError
from outbox_pipeline.events import Event, context_text, prepare_event, prepare_events, snake_case
from outbox_pipeline.settings import default_environment, load_settings

Item = TypeVar("Item")


class UserCreated(Event):
    """An event with nothing but a field."""

    email: str


class OrderPaid(Event, event_type="order.paid", metadata_version=2):
    """An event that names its type and version, and has fields called like them."""

    event_type: str = "card"
    metadata_version: int = 9
    event_id: int = 7


class Measured(Event):
    """An event that takes any value at all."""

    value: Any


class Page(Event, Generic[Item]):
    """A generic event."""

    items: list[Item]


class Colour(enum.StrEnum):
    """Names kept in an enumeration."""

    RED = "red_chosen"


class Reading(BaseModel):
    """A model that is no event."""

    value: Any


@dataclass
class Seen:
    """A dataclass, whose values nothing checks."""

    value: Any
    by: ClassVar[str] = "nobody"


@pydantic_dataclass
class Checked:
    """A dataclass of pydantic's."""

    value: Any = Field(serialization_alias="theValue")


class Shade(enum.Enum):
    """An enumeration of values that are no texts."""

    DARK = date(2026, 1, 2)
    LIGHT = (1, "two")


class Parts(BaseModel):
    """A model with values that come once, as pydantic reads an iterable."""

    parts: Iterable[str]


class Nothing(enum.Enum):
    """An enumeration with a value JSON has no word for."""

    AT_ALL = float("nan")


class NoOffset(tzinfo):
    """A time zone that does not know its offset."""

    def utcoffset(self, _when: datetime | None) -> timedelta | None:
        """Return nothing, which Python reads as naive."""
        return None


@pytest.fixture(autouse=True)
def _fresh_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_ENVIRONMENT", "unit-test")
    default_environment.cache_clear()
    events._context_max_bytes.cache_clear()


@pytest.mark.parametrize(
    ("class_name", "event_type"),
    [
        ("UserCreated", "user_created"),
        ("HTTPRequestFailed", "http_request_failed"),
        ("RequestOverHTTP", "request_over_http"),
        ("Order2Paid", "order2_paid"),
        ("OAuth2TokenIssued", "o_auth2_token_issued"),
        ("Login", "login"),
        ("_Internal", "internal"),
    ],
)
def test_type_is_the_class_name_in_snake_case(class_name: str, event_type: str) -> None:
    """Each word starts at a capital; an acronym is one word."""
    assert snake_case(class_name) == event_type


def test_class_gives_type_version_and_context() -> None:
    """A plain class needs no configuration; what it leaves out comes from the clock and the settings."""
    before = datetime.now(UTC)

    row = prepare_event(UserCreated(email="ä@b.c"))

    assert (row.event_type, row.metadata_version, row.environment) == ("user_created", 1, "unit-test")
    assert row.event_context == '{"email":"ä@b.c"}'
    assert row.trace_context is None
    assert row.event_id.version == 7
    assert before <= row.event_date_time <= datetime.now(UTC)


def test_fields_may_be_called_like_the_envelope() -> None:
    """Type and version of the class stay apart from context fields of the same names."""
    row = prepare_event(OrderPaid())

    assert (row.event_type, row.metadata_version) == ("order.paid", 2)
    assert json.loads(row.event_context) == {"event_type": "card", "metadata_version": 9, "event_id": 7}


def test_subclass_of_an_event_is_another_event() -> None:
    """Type and version are not inherited, or two kinds of event would share a name."""

    class OrderPaidLate(OrderPaid):
        """A more special event."""

    row = prepare_event(OrderPaidLate())

    assert (row.event_type, row.metadata_version) == ("order_paid_late", 1)


def test_parametrised_generic_keeps_its_name() -> None:
    """A generic event filled with a type is the same event."""
    assert prepare_event(Page[int](items=[1])).event_type == "page"


def test_context_is_the_model_in_json_mode_by_alias() -> None:
    """Aliases, computed fields and pydantic's JSON forms of dates and decimals make up the context."""

    class Priced(Event):
        """An event with all of it."""

        unit_price: Decimal = Field(serialization_alias="unitPrice")
        at: datetime

        @computed_field  # type: ignore[prop-decorator]
        @property
        def doubled(self) -> Decimal:
            return self.unit_price * 2

    event = Priced(unit_price=Decimal("1.10"), at=datetime(2026, 1, 2, tzinfo=UTC))

    assert context_text(event) == '{"unitPrice":"1.10","at":"2026-01-02T00:00:00Z","doubled":"2.20"}'


def test_event_is_a_fact() -> None:
    """An event takes no unknown fields, which are typing mistakes, and does not change."""
    with pytest.raises(ValueError, match="extra"):
        UserCreated(email="a", emial="b")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="frozen"):
        UserCreated(email="a").email = "b"  # type: ignore[misc]


def test_arguments_win_over_class_and_settings() -> None:
    """What the caller says is what is stored, an id given as text included."""
    event_id, when = uuid4(), datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=5)))

    row = prepare_event(
        UserCreated(email="a"),
        event_type=Colour.RED,
        metadata_version=4,
        event_date_time=when,
        environment="staging",
        event_id=str(event_id),
        trace_context="00-ab-cd-01",
    )

    assert (row.event_type, row.metadata_version, row.environment) == ("red_chosen", 4, "staging")
    assert type(row.event_type) is str
    assert (row.event_id, row.event_date_time, row.trace_context) == (event_id, when, "00-ab-cd-01")


@pytest.mark.parametrize(
    ("context", "text"),
    [
        ({}, "{}"),
        (MappingProxyType({"a": (1, None, True)}), '{"a":[1,null,true]}'),
        ({"n": 10**40}, '{"n":1' + "0" * 40 + "}"),
        ({"n": -(2**63) - 1}, '{"n":-9223372036854775809}'),
        ({"n": 0.1}, '{"n":0.1}'),
        ({"t": "größe 🎉 \u2028"}, '{"t":"größe 🎉 \u2028"}'),
        ({"t": "a\0b"}, '{"t":"a\\u0000b"}'),
        ({"t": "ä\ud800"}, '{"t":"\\u00e4\\ud800"}'),
        ({"\udfff": 1}, '{"\\udfff":1}'),
        ({"c": Colour.RED}, '{"c":"red_chosen"}'),
    ],
)
def test_mapping_becomes_exact_json(context: Mapping[str, Any], text: str) -> None:
    """Integers keep every digit, text stays readable, and what UTF-8 cannot carry becomes an escape."""
    assert context_text(context) == text
    assert json.loads(text.encode()) == json.loads(text)


def test_surrogate_in_a_model_becomes_an_escape() -> None:
    """A model's text is carried as a mapping's is."""
    assert context_text(Measured(value="\ud800\0")) == '{"value":"\\ud800\\u0000"}'


_LEAVES = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
_VALUES = st.recursive(_LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(st.dictionaries(st.text(), _VALUES))
def test_every_value_json_knows_comes_back(context: dict[str, Any]) -> None:
    """Whatever a context of plain values holds, its text says the same; all but floats as Python itself writes it."""
    text = context_text(context)

    assert json.loads(text) == context
    if "." not in text and "e" not in text:
        assert text == json.dumps(context, ensure_ascii=False, separators=(",", ":"))


_ZONE = timezone(timedelta(hours=-5, minutes=-30))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), '"2026-01-02T03:04:05.000678Z"'),
        (datetime(2026, 1, 2, tzinfo=_ZONE), '"2026-01-02T00:00:00-05:30"'),
        (datetime(2026, 1, 2), '"2026-01-02T00:00:00"'),
        (pd.Timestamp("2026-01-02T03:04:05.678Z"), '"2026-01-02T03:04:05.678000Z"'),
        (date(2026, 1, 2), '"2026-01-02"'),
        (time(3, 4), '"03:04:00"'),
        (time(3, 4, tzinfo=UTC), '"03:04:00Z"'),
        (timedelta(days=1, seconds=2), '"P1DT2S"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Decimal("1.10"), '"1.10"'),
        (Decimal("1E+400"), '"1E+400"'),
        (Colour.RED, '"red_chosen"'),
        (Shade.DARK, '"2026-01-02"'),
        (Shade.LIGHT, '[1,"two"]'),
        (Seen((1, UUID(int=0))), '{"value":[1,"00000000-0000-0000-0000-000000000000"]}'),
        (Seen(Seen(Shade.DARK)), '{"value":{"value":"2026-01-02"}}'),
        (Reading(value=Decimal("1.0")), '{"value":"1.0"}'),
        (Checked(date(2026, 1, 2)), '{"theValue":"2026-01-02"}'),
        (UserCreated(email="ä"), '{"email":"ä"}'),
        (Page[int](items=[1]), '{"items":[1]}'),
    ],
)
def test_ordinary_values_are_written_as_pydantic_writes_them(value: Any, text: str) -> None:
    """In a mapping, a list, a dataclass and a model alike, and beside what JSON knows."""
    assert to_json(value, by_alias=True).decode() == text
    for context in ({"v": value}, MappingProxyType({"v": value}), Measured(value=value).model_copy()):
        assert context_text(context).partition(":")[2][:-1] == text
    assert context_text({"n": 0, "v": [value, {"w": value}]}) == f'{{"n":0,"v":[{text},{{"w":{text}}}]}}'
    assert context_text(Seen({"w": value})) == f'{{"value":{{"w":{text}}}}}'
    assert context_text({"t": "\ud800", "v": value}) == f'{{"t":"\\ud800","v":{text}}}'.replace("ä", "\\u00e4")


def test_a_dataclass_and_any_model_are_events_of_a_type_that_is_given() -> None:
    """Their fields are the context, alone and among many; without a type they are refused as a mapping is."""
    events: list[Any] = [Seen(Decimal("1.10")), Reading(value=UUID(int=0)), Checked(None)]
    alone = [prepare_event(event, event_type="t") for event in events]
    many = prepare_events([*events, *events], event_ids=[None] * 6, event_type="t", metadata_version=2)

    texts = ['{"value":"1.10"}', '{"value":"00000000-0000-0000-0000-000000000000"}', '{"theValue":null}']
    assert [row.event_context for row in alone] == texts
    assert [(row.event_type, row.metadata_version, row.event_context) for row in many] == [
        ("t", 2, text) for text in texts * 2
    ]
    with pytest.raises(PublishError, match="event_type: is missing: an Event class has one"):
        prepare_event(events[0])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"secret", "has bytes, which JSON has no word for: give a text, such as their base64"),
        ({"secret"}, "has a value of type set, which JSON has no word for"),
        (Decimal("sNaN"), "has a number that is not finite"),
        (pd.NaT, "cannot be read: a NaTType in it raises TypeError"),
        (pd.Timestamp(1), "has a Timestamp with nanoseconds, and a time in it has microseconds: round it"),
        (pd.Timedelta(1), "has a Timedelta with nanoseconds, and a time in it has microseconds: round it"),
    ],
)
def test_what_has_no_word_is_told_by_its_kind(value: Any, said: str) -> None:
    """The sentence names the type and not the content, in a dataclass too."""
    for context in ({"a": value}, {"a": Seen([value])}, Seen(value)):
        with pytest.raises(PublishError) as caught:
            prepare_event(context, event_type="t")
        assert str(caught.value) == f"event_context: {said}"


@pytest.mark.parametrize("part", ["a", "ä\ud800🎉"])
def test_what_can_be_read_once_is_read_once(part: str) -> None:
    """An iterable of a model arrives whole, wherever the model stands and whatever its texts are."""
    text = json.dumps({"parts": [part]}, separators=(",", ":"))

    assert context_text({"a": Parts(parts=[part])}) == f'{{"a":{text}}}'
    assert context_text(Seen([Parts(parts=[part])])) == f'{{"value":[{text}]}}'
    assert context_text(Parts(parts=[part])) == text


def test_no_warning_quotes_a_value_that_does_not_fit_its_model(recwarn: pytest.WarningsRecorder) -> None:
    """What pydantic would say of it stands on stderr or in a log, and an event's content shall not."""
    odd = UserCreated.model_construct(email=7)

    assert context_text(odd) == '{"email":7}'
    assert context_text({"a": odd, "b": None}) == '{"a":{"email":7},"b":null}'
    assert not recwarn.list


def test_a_context_of_very_many_parts_is_written() -> None:
    """More of them than are counted on the fast way."""
    context = {"a": [[] for _ in range(events._PLAIN_CONTAINERS_MAX)]}

    assert context_text(context) == json.dumps(context, separators=(",", ":"))


def test_words_of_json_in_a_text_are_texts() -> None:
    """A text that says NaN is a text, a number that is none is refused beside it."""
    assert context_text({"a": "NaN, Infinity"}) == '{"a":"NaN, Infinity"}'
    with pytest.raises(PublishError, match="event_context"):
        context_text({"a": "NaN", "b": float("nan")})


def test_many_are_prepared_as_each_one() -> None:
    """Events of one call get the type, version and context that each would get alone, and ids of their own."""
    events: list[Any] = [UserCreated(email="a"), OrderPaid(), UserCreated(email="b"), OrderPaid(), {"a": 1}, {"b": 2}]
    when = datetime(2026, 1, 2, tzinfo=UTC)

    rows = prepare_events(events[:4], event_ids=[None] * 4, event_date_time=when, trace_context="t")
    mappings = prepare_events(events[4:], event_ids=[None, str(UUID(int=7))], event_type="t", metadata_version=3)

    for row, event in zip(rows, events[:4], strict=True):
        alone = prepare_event(event, event_id=row.event_id, event_date_time=when, trace_context="t")
        assert row == alone
    assert [(row.event_type, row.metadata_version, row.event_context) for row in mappings] == [
        ("t", 3, '{"a":1}'),
        ("t", 3, '{"b":2}'),
    ]
    assert mappings[1].event_id == UUID(int=7)
    assert len({row.event_id for row in rows}) == 4


@pytest.mark.parametrize("bad", [{"a": {1}}, None, "text", [1]])
def test_one_bad_event_among_many_refuses_all(bad: Any) -> None:
    """Wherever it stands."""
    for many in ([bad, {}, {}], [{}, bad, {}], [{}, {}, bad]):
        with pytest.raises(PublishError, match=r"event_context|event:"):
            prepare_events(many, event_ids=[None] * 3, event_type="t")


def _circle() -> dict[str, Any]:
    circle: dict[str, Any] = {}
    circle["self"] = [circle]
    return circle


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def _seen(depth: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth):
        value = Seen(value)
    return {"a": value}


def _seen_circle() -> Any:
    circle = Seen(None)
    circle.value = [circle]
    return circle


@pytest.mark.parametrize(
    "context",
    [
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": {1, 2}},
        {"a": b"x"},
        {"a": bytearray(b"x")},
        {"a": Decimal("NaN")},
        {"a": [Decimal("-Infinity")]},
        {"a": Seen(float("nan"))},
        {"a": Seen(b"x")},
        {"a": Seen({1: 2})},
        {"a": Reading(value=float("nan"))},
        {"a": Reading(value=[float("inf")])},
        {"a": Nothing.AT_ALL},
        {"a": Seen},
        {UUID(int=0): 1},
        {"a": {Shade.DARK: 1}},
        {"a": iter([])},
        _seen(DEPTH_MAX),
        _seen(100_000),
        {"a": _seen_circle()},
        Seen(_nested(DEPTH_MAX)),
        Seen(float("nan")),
        Reading(value=float("nan")),
        Checked(value=float("nan")),
        {"a": object()},
        {"a": MappingProxyType({})},
        {1: "a"},
        {"a": [{None: 1}]},
        {"a": {True: 1}},
        {("a",): 1},
        {"a": 10**5000},
        _circle(),
        _nested(DEPTH_MAX + 1),
        _nested(100_000),
        Measured(value=float("nan")),
        Measured(value={"a": [float("-inf")]}),
        Measured(value=Reading(value=float("nan"))),
        Measured(value=Nothing.AT_ALL),
        Measured(value=deque([float("nan")])),
        {"a": Reading(value=Seen(Nothing.AT_ALL))},
        Measured(value=object()),
        Measured(value=b"\xff"),
        Measured(value=_circle()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_has_no_word_for_is_refused(context: Any) -> None:
    """Nothing is turned into null, into a text or into a rounded number behind the caller's back."""
    with pytest.raises(PublishError) as caught:
        prepare_event(context, event_type="t")

    assert caught.value.field == "event_context"


def test_null_is_not_mistaken_for_a_lost_number() -> None:
    """A null that was meant stays, and so does nesting up to the limit."""
    assert context_text(Measured(value=None)) == '{"value":null}'
    assert context_text(_nested(DEPTH_MAX)).count("{") == DEPTH_MAX + 1


def test_context_limit_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly the limit is accepted; one byte more is refused, however few characters that is."""
    monkeypatch.setenv("OUTBOX_CONTEXT_MAX_BYTES", str(len('{"a":"ä🎉"}'.encode())))

    assert prepare_event({"a": "ä🎉"}, event_type="t")
    with pytest.raises(PublishError, match="more than OUTBOX_CONTEXT_MAX_BYTES"):
        prepare_event({"a": "ä🎉x"}, event_type="t")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_type", None),
        ("event_type", ""),
        ("event_type", " \n"),
        ("event_type", "x" * 501),
        ("event_type", "ä" * 251),
        ("event_type", "a\0"),
        ("event_type", "a\ud800"),
        ("event_type", 3),
        ("environment", ""),
        ("environment", "x" * 201),
        ("environment", "🎉" * 51),
        ("environment", "\0"),
        ("environment", "\udfff"),
        ("environment", b"prod"),
        ("metadata_version", 0),
        ("metadata_version", -1),
        ("metadata_version", 2**63),
        ("metadata_version", True),
        ("metadata_version", 1.0),
        ("metadata_version", "1"),
        ("event_date_time", datetime(2026, 1, 1)),
        ("event_date_time", datetime(2026, 1, 1, tzinfo=NoOffset())),
        ("event_date_time", "2026-01-01T00:00:00Z"),
        ("event_id", "no-uuid"),
        ("event_id", 5),
        ("event_id", b"0" * 16),
        ("trace_context", 1),
        ("trace_context", "a\0"),
        ("trace_context", "\ud800"),
        ("trace_context", "x" * 8_193),
        ("trace_context", "ä" * 4_097),
    ],
)
def test_wrong_argument_is_refused_by_name(field: str, value: Any) -> None:
    """Each argument is checked, and the error says which one it was."""
    arguments = {"event_type": "t", field: value}

    with pytest.raises(PublishError) as caught:
        prepare_event({}, **arguments)

    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_type", "x" * 500),
        ("event_type", "ä" * 250),
        ("metadata_version", 2**63 - 1),
        ("environment", "e"),
        ("environment", "🎉" * 50),
        ("trace_context", ""),
        ("trace_context", "x" * 8_192),
    ],
)
def test_limits_themselves_are_accepted(field: str, value: Any) -> None:
    """The largest version, the longest names and traces and an empty trace are fine."""
    assert getattr(prepare_event({}, **{"event_type": "t", field: value}), field) == value


def test_a_name_that_is_too_long_is_told_in_bytes_and_not_shown() -> None:
    """The sentence names the field, its size and its limit, and nothing of the text."""
    with pytest.raises(PublishError) as caught:
        prepare_event({}, event_type="ä" * 300)

    assert str(caught.value) == "event_type: has 600 bytes in UTF-8, more than the 500 it may have"


@pytest.mark.parametrize(("environment", "is_fit"), [("e" * 200, True), ("ä" * 100, True), ("ä" * 101, False)])
def test_the_environment_of_the_settings_is_as_short(
    monkeypatch: pytest.MonkeyPatch, environment: str, is_fit: bool
) -> None:
    """OUTBOX_ENVIRONMENT is refused at the start, so that it never fails a publish."""
    monkeypatch.setenv("OUTBOX_ENVIRONMENT", environment)

    if is_fit:
        assert load_settings().environment == environment
    else:
        with pytest.raises(SettingsError, match="OUTBOX_ENVIRONMENT must not be longer than 200 bytes"):
            load_settings()


@pytest.mark.parametrize(
    "event", [None, [1], "{}", UserCreated, Seen, Shade.DARK, RootModel[int](1), datetime(2026, 1, 2)]
)
def test_only_what_has_fields_is_an_event(event: Any) -> None:
    """Anything else is refused as a whole, a class instead of an instance too."""
    with pytest.raises(PublishError) as caught:
        prepare_event(event, event_type="t")

    assert caught.value.field == "event"


def test_refusal_repeats_no_content() -> None:
    """The error says what is wrong without quoting the context."""
    with pytest.raises(PublishError) as caught:
        context_text({"secret-key": {"secret-value"}, "x": "secret-text"})

    assert "secret" not in str(caught.value)


def test_bare_event_has_no_type() -> None:
    """The base class alone says nothing about what happened."""
    with pytest.raises(PublishError, match="event_type"):
        prepare_event(Event())
