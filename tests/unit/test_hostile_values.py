"""Values whose own code raises: an event of them is refused in one sentence, and best effort passes over them all."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pandas as pd
import pytest
import structlog
from structlog.contextvars import bound_contextvars
from structlog.testing import capture_logs

from outbox_pipeline import PublishError, events, not_published_count
from outbox_pipeline.errors import SettingsError
from outbox_pipeline.events import prepare_event, prepare_events
from outbox_pipeline.publish.fields import row_of, rows_of
from tests.fixtures.hostile import NOW, REFUSED, SECRET, Classless, Id, Number, OddZone, Text, fail

CASES = pytest.mark.parametrize(("field", "event", "keywords"), REFUSED.values(), ids=REFUSED.keys())


@CASES
def test_a_required_event_is_refused_in_one_sentence(field: str, event: Any, keywords: dict[str, Any]) -> None:
    """The error is ours and names the argument; nothing of a value is in it, and no foreign error hangs on it."""
    with pytest.raises(PublishError) as alone:
        prepare_event(event, **{"event_type": "t", **keywords})
    with pytest.raises(PublishError) as among:
        rows_of([event, event], _of_many({"event_type": "t", **keywords}), is_required=True)

    for caught in (alone, among):
        assert (caught.value.field, caught.value.__cause__) == (field, None)
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)


@CASES
def test_best_effort_ends_in_none_and_a_line(field: str, event: Any, keywords: dict[str, Any]) -> None:
    """One event and several are given up, counted and told, without anything of what they say."""
    before = not_published_count()

    with capture_logs() as lines:
        alone = row_of(event, {"event_type": "t", **keywords}, is_required=False)  # type: ignore[typeddict-item]
        many = rows_of([event, event], _of_many({"event_type": "t", **keywords}), is_required=False)

    assert (alone, many) == (None, None)
    assert not_published_count() == before + 3
    assert [line["count"] for line in lines] == [1, 2]
    assert all(line["error"].startswith(f"{field}: ") for line in lines)
    assert SECRET not in str(lines)


def _of_many(keywords: dict[str, Any]) -> Any:
    event_id = keywords.pop("event_id", None)
    return keywords if event_id is None else {**keywords, "event_ids": [event_id] * 2}


class OddError(Exception):
    """An application's error with an attribute of the name under which SQLAlchemy has the driver's."""

    def __init__(self, original: Any) -> None:
        self.original = original

    @property
    def orig(self) -> Any:
        """Return what the error holds, or fail."""
        return self.original() if callable(self.original) else self.original


@pytest.mark.parametrize("original", ["a text", {"a": "mapping"}, fail], ids=["text", "mapping", "raises"])
def test_best_effort_passes_over_whatever_an_error_holds(original: Any) -> None:
    """The error of the caller's own iterable is told by its class alone."""

    def events() -> Iterator[dict[str, Any]]:
        yield {}
        raise OddError(original)

    with capture_logs() as lines:
        assert rows_of(events(), {"event_type": "t"}, is_required=False) is None

    assert [line["error"] for line in lines] == ["OddError"]


@pytest.mark.parametrize(
    ("when", "stored"),
    [
        (NOW.replace(tzinfo=OddZone()), NOW - timedelta(hours=5, seconds=30, microseconds=7)),
        (pd.Timestamp("2026-03-01T12:00:00.123456789Z"), NOW.replace(microsecond=123456)),
        (pd.Timestamp("2026-03-01T12:00:00", tz="America/New_York"), NOW + timedelta(hours=5)),
    ],
)
def test_times_of_any_kind_are_stored_exactly(when: Any, stored: datetime) -> None:
    """What is written is a plain time in UTC, whose offset PostgreSQL can always read."""
    rows = prepare_events([{}, {}], event_ids=[None, None], event_type="t", event_date_time=when)

    assert [row.event_date_time for row in rows] == [stored, stored]
    assert {(type(row.event_date_time), row.event_date_time.tzinfo) for row in rows} == {(datetime, UTC)}


def test_odd_values_are_stored_as_plain_ones() -> None:
    """Of texts, numbers and ids of classes of their own nothing is called that they define."""
    row = prepare_event(
        {Text("key"): Text("value")},
        event_type=Text("t"),
        environment=Text("e"),
        trace_context=Text("trace"),
        metadata_version=Number(3),
        event_id=Id(int=7),
    )

    assert row == row._replace(
        event_id=UUID(int=7),
        event_type="t",
        environment="e",
        event_context='{"key":"value"}',
        metadata_version=3,
        trace_context="trace",
    )
    assert [type(value) for value in row] == [UUID, str, datetime, str, str, int, str]


def test_events_that_cannot_be_taken_from_their_iterable_are_given_up() -> None:
    """What making an event raises is passed over with best effort, and is the caller's own error otherwise."""

    def made() -> Iterator[Any]:
        yield {}
        fail(LookupError)

    with capture_logs() as lines:
        assert rows_of(made(), {"event_type": "t"}, is_required=False) is None
        assert rows_of(None, {"event_type": "t"}, is_required=False) is None  # type: ignore[arg-type]
    with pytest.raises(LookupError):
        rows_of(made(), {"event_type": "t"}, is_required=True)

    assert [(line["error"], line["count"]) for line in lines] == [("LookupError", 1), ("TypeError", 1)]


def test_settings_that_cannot_be_read_stop_no_business(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with a value that cannot be costs the event only, where it may be lost; the line names it."""
    monkeypatch.setenv("OUTBOX_CONTEXT_MAX_BYTES", "many")
    events._context_max_bytes.cache_clear()

    with pytest.raises(SettingsError, match="OUTBOX_CONTEXT_MAX_BYTES"):
        row_of({}, {"event_type": "t", "environment": "e"}, is_required=True)
    with capture_logs() as lines:
        assert row_of({}, {"event_type": "t", "environment": "e"}, is_required=False) is None

    assert "OUTBOX_CONTEXT_MAX_BYTES" in lines[0]["error"]


def test_a_trace_that_cannot_be_read_is_left_out() -> None:
    """An id in structlog's context variables is no reason for a publish to fail."""
    with bound_contextvars(correlation_id=Classless(), request_id="r"):
        row = row_of({}, {"event_type": "t"}, is_required=True)

    assert row is not None
    assert row.trace_context is None


@pytest.fixture
def unconfigured_structlog() -> Iterator[None]:
    """Structlog as it is in a process that has never configured it."""
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)


@pytest.mark.usefixtures("unconfigured_structlog")
def test_the_line_about_it_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Neither do an application's own processors, nor a filter of its logging; the event is counted all the same."""
    before = not_published_count()
    refused: Any = {"event_type": Text("t"), "metadata_version": 0}
    logger = logging.getLogger("outbox_pipeline")

    assert row_of({}, refused, is_required=False) is None
    logger.addFilter(fail)
    try:
        assert row_of({}, refused, is_required=False) is None
    finally:
        logger.removeFilter(fail)
    structlog.configure(processors=[lambda *_: fail()])
    assert row_of({}, refused, is_required=False) is None

    assert not_published_count() == before + 3
    assert ["event_type='t'" in record.getMessage() for record in caplog.records] == [True]
