"""Contexts against models: what is held and why, that no event fails another, and that reasons show no content."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import pyarrow as pa
import pytest
from pydantic import BaseModel, Field, field_validator
from pydantic_core import PydanticCustomError

from outbox_pipeline import Event
from outbox_pipeline.registry import Registry
from outbox_pipeline.validation import Reason, Rejection, Rules, models, validate_events
from outbox_pipeline.validation.contract import ARROW_TYPES

NOW = datetime(2026, 3, 1, tzinfo=UTC)
#: In every field that is wrong; no reason may show it.
SECRET = "4111-1111-secret"


class Created(Event, event_type="created"):
    """The first version."""

    email: str


class Created2(Event, event_type="created", metadata_version=2):
    """The second version."""

    email: str
    age: int = Field(ge=0)


class Strict(Event, event_type="strict", strict=True):
    """A model in strict mode."""

    age: int


class Card(BaseModel):
    """One kind of payment."""

    kind: Literal["card"]
    number: int


class Cash(BaseModel):
    """Another kind of payment."""

    kind: Literal["cash"]


class Talkative(Event, event_type="talkative"):
    """Fields whose errors would quote what they were given."""

    checked: str = ""
    custom: str = ""
    crashes: str = ""
    tagged: Annotated[Card | Cash, Field(discriminator="kind")] | None = None
    union: int | bool | None = None
    at: datetime | None = None
    uid: UUID | None = None
    amount: Decimal = Decimal(0)
    by_name: dict[str, int] | None = None
    choice: Literal["a", "b"] = "a"

    @field_validator("checked")
    @classmethod
    def _check(cls, value: str) -> str:
        if value:
            raise ValueError(f"{value} is refused")
        return value

    @field_validator("custom")
    @classmethod
    def _check_custom(cls, value: str) -> str:
        if value:
            raise PydanticCustomError("own_error", "no {value} here", {"value": value})
        return value

    @field_validator("crashes")
    @classmethod
    def _crash(cls, value: str) -> str:
        if value:
            raise KeyError(value)
        return value


RULES = Rules(registry=Registry((Created, Created2, Strict, Talkative)))


def batch(*events: tuple[str | None, int | None, str | None]) -> pa.Table:
    """Return a batch of events given as type, version and context; positions count from 1."""
    good = {"event_date_time": NOW, "environment": "test", "recorded_at": NOW, "trace_context": None}
    rows = [
        good
        | {"position": number, "event_id": number.to_bytes(16, "big")}
        | {"event_type": event_type, "metadata_version": version, "event_context": context}
        for number, (event_type, version, context) in enumerate(events, start=1)
    ]
    return pa.Table.from_pylist(rows, pa.schema(list(ARROW_TYPES.items())))


def reason(event_type: str, context: Any, version: int = 1) -> str | None:
    """Return the one reason against an event that stands between two good ones."""
    text = context if isinstance(context, str) else json.dumps(context)
    good = ("created", 1, '{"email": "a"}')
    rejections = validate_events(batch(good, (event_type, version, text), good), RULES)
    assert [(found.position, len(found.reasons)) for found in rejections] in ([], [(2, 1)])
    return rejections[0].reasons[0] if rejections else None


@pytest.mark.parametrize(
    ("event_type", "version", "context", "expected"),
    [
        ("created", 1, {"email": "a"}, None),
        ("created", 1, {}, "model: email: Field required"),
        ("created", 1, {"email": 1}, "model: email: Input should be a valid string"),
        ("created", 1, {"email": "a", "emial": 1}, "model: *: Extra inputs are not permitted"),
        ("created", 2, {"email": "a", "age": 0}, None),
        ("created", 2, {"email": "a"}, "model: age: Field required"),
        ("created", 2, {"email": "a", "age": -1}, "model: age: Input should be greater than or equal to 0"),
        ("created", 2, {"age": -1}, "model: email: Field required; age: Input should be greater than or equal to 0"),
        ("created", 3, {"email": "a"}, "metadata_version_unknown"),
        ("strict", 1, {"age": "1"}, "model: age: Input should be a valid integer"),
        ("created", 2, {"email": "a", "age": "1"}, None),
        ("nobody_knows", 9, {"anything": 1}, None),
    ],
)
def test_each_context_is_held_against_its_own_version(
    event_type: str, version: int, context: Any, expected: str | None
) -> None:
    """The model of type and version judges, in the mode it asks for; types without a model are free."""
    assert reason(event_type, context, version) == expected


def test_types_are_restricted_by_their_own_setting() -> None:
    """With OUTBOX_EVENT_TYPES a type is unknown whether it has a model or not."""
    rules = Rules(frozenset({"other"}), registry=RULES.registry)
    events = batch(("created", 1, '{"email": "a"}'), ("other", 1, "{}"))

    assert validate_events(events, rules) == [Rejection(1, (Reason.EVENT_TYPE_UNKNOWN,))]


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({"checked": SECRET}, "checked: refused by a check of the model's own"),
        ({"custom": SECRET}, "custom: refused by a check of the model's own"),
        ({"crashes": SECRET}, "the model failed with KeyError"),
        (
            {"tagged": {"kind": SECRET}},
            "tagged: Input tag '…' found using 'kind' does not match any of the expected tags: 'card', 'cash'",
        ),
        (
            {"tagged": {"kind": "card", "number": SECRET}},
            "tagged.card.number: Input should be a valid integer, unable to parse string as an integer",
        ),
        ({"at": SECRET}, "at: Input should be a valid datetime or date, …"),
        ({"uid": f"0b8f1c1e-6c55-4d0a-9a44-{SECRET}"}, "uid: Input should be a valid UUID, …"),
        ({"amount": SECRET}, "amount: Input should be a valid decimal"),
        (
            {"by_name": {SECRET: "x"}},
            "by_name.*: Input should be a valid integer, unable to parse string as an integer",
        ),
        ({SECRET: 1}, "*: Extra inputs are not permitted"),
        ({"choice": SECRET}, "choice: Input should be 'a' or 'b'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_reasons_show_nothing_of_the_event(context: dict[str, Any], expected: str) -> None:
    """Neither values nor keys of a context are quoted, whatever pydantic or the model's own checks would say."""
    found = reason("talkative", context)

    assert found == f"model: {expected}"
    assert SECRET not in found


def test_many_problems_are_counted() -> None:
    """A reason names the first few and says how many more there are."""
    wrong = dict.fromkeys(("at", "uid", "amount", "choice", "union", "by_name"), SECRET)

    found = reason("talkative", wrong)

    assert found is not None
    assert found.endswith("more")
    assert SECRET not in found
    assert len(found) < 600


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (r'{"email": "\ud800"}', "unexpected end of hex escape"),
        (r'{"email": "\udc00x"}', "lone leading surrogate"),
        ('{"email": ' + "9" * 5000 + "}", "number out of range"),
        ('{"email": ' + "[" * 5000 + "]" * 5000 + "}", "recursion limit exceeded"),
    ],
    ids=["high surrogate", "low surrogate", "huge number", "deep"],
)
def test_json_that_pydantic_cannot_read_fails_only_itself(context: str, expected: str) -> None:
    """PostgreSQL takes it and the model cannot judge it: this event is held and says why, the others go on."""
    found = reason("created", context)

    assert found is not None
    assert found.startswith("model: cannot be read as JSON by pydantic: ")
    assert expected in found


def test_json_oddities_that_pydantic_reads_are_judged() -> None:
    """The last of doubled keys counts, U+0000 is text, spaces mean nothing, and big numbers are numbers."""
    big = "1" + "0" * 400

    assert reason("created", r' {"email": 1, "email": "\u0000"} ') is None
    assert reason("created", '{"email": "x"}\n') is None
    assert reason("created", f'{{"email": "a", "age": {big}}}', version=2) is None
    assert reason("created", '{"email": "a", "age": 1e999}', version=2) == "model: age: Input should be a finite number"


def test_a_context_at_the_depth_limit_is_not_failed_by_its_neighbours() -> None:
    """In the array it lies one level deeper than pydantic reads; alone it must still be said why."""
    deep = '{"email": ' + "[" * 199 + "]" * 199 + "}"

    assert reason("created", deep) == "model: email: Input should be a valid string"


def test_contexts_that_cannot_be_asked_about_keep_their_own_reason() -> None:
    """What is missing, no object, too large or no UTF-8 is rejected for that, without a word about the model."""
    rules = Rules(context_max_bytes=20, registry=RULES.registry)
    events = batch(
        ("created", 1, None),
        ("created", None, "{}"),
        (None, 1, "{}"),
        ("created", 1, "[]"),
        ("created", 1, '{"email": "xxxxxxxxxxxxx"}'),
        ("created", 0, "{}"),
    )

    assert [(found.position, found.reasons) for found in validate_events(events, rules)] == [
        (1, ("value_missing",)),
        (2, ("value_missing",)),
        (3, ("value_missing",)),
        (4, ("context_not_object",)),
        (5, ("context_too_large",)),
        (6, ("metadata_version_below_1", "metadata_version_unknown")),
    ]


def test_bulk_and_single_verdicts_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of any size give what judging each event alone gives, in a batch with every kind of event."""
    contexts = ['{"email": "a"}', "{}", r'{"email": "\ud800"}', '{"email": 5}', '{"checked": "x"}', '{"crashes": "x"}']
    kinds = [("created", 1), ("created", 2), ("created", 7), ("talkative", 1), ("free", 1)]
    events = [(kind, version, context) for _ in range(20) for context in contexts for kind, version in kinds]
    whole = [validate_events(batch(*events), RULES)]

    for rows in (1, 2, 7, 1000):
        monkeypatch.setattr(models, "PAGE_ROWS", rows)
        whole.append(validate_events(batch(*events), RULES))

    assert whole[0]
    assert all(found == whole[0] for found in whole)


def test_a_good_batch_is_judged_in_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No event is asked alone where its page is good, nor where pydantic says which of a page are bad."""
    asked: list[int] = []
    single = models._judge_singly
    monkeypatch.setattr(models, "_judge_singly", lambda model, page: asked.append(len(page)) or single(model, page))
    good, bad = ("created", 1, '{"email": "a"}'), ("created", 1, "{}")

    validate_events(batch(*[good] * 250, bad), RULES)
    assert asked == []

    validate_events(batch(*[good] * 250, ("created", 1, r'{"email": "\ud800"}')), RULES)
    assert asked == [51]


def test_the_text_is_only_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that would change what it reads changes nothing: the batch is the same table as before."""
    table = batch(("created", 2, '{ "age" : "007", "email": "a" }'))
    before = table.to_pylist()

    assert validate_events(table, RULES) == []
    assert table.to_pylist() == before
