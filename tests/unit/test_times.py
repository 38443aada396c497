"""Days and times as people type them."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime

import pytest

from outbox_pipeline.errors import UsageError
from outbox_pipeline.times import parse_day, parse_time


@pytest.fixture(params=["UTC", "Asia/Tokyo"])
def local_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host whose clock shows this zone."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("local_zone")
def test_a_day_and_a_time_are_read_as_utc() -> None:
    """Spaces around a word do not matter, a date is its midnight, and an offset is taken into account."""
    assert parse_day(" 2026-03-01 ", "--from") == date(2026, 3, 1)
    assert parse_time("2026-03-01", "since") == datetime(2026, 3, 1, tzinfo=UTC)
    assert parse_time(" 2026-03-01T14:30 ", "since") == datetime(2026, 3, 1, 14, 30, tzinfo=UTC)
    assert parse_time("2026-03-01T00:30+02:00", "since") == datetime(2026, 2, 28, 22, 30, tzinfo=UTC)


@pytest.mark.parametrize("read", [parse_day, parse_time])
@pytest.mark.parametrize("word", ["yesterday", "2026-13-01", "", "sekret"])
def test_a_word_that_is_none_is_named_by_its_place_and_not_quoted(
    read: Callable[[str, str], object], word: str
) -> None:
    """The sentence says where the word was given and how to write it."""
    with pytest.raises(UsageError) as caught:
        read(word, "--from")

    assert str(caught.value) in {
        "What is given as --from is no day: write it like 2026-03-01.",
        "What is given as --from is no time: write a UTC date or time such as 2026-03-01 or 2026-03-01T14:30.",
    }
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)


def test_a_time_before_all_times_in_utc_is_refused() -> None:
    """Its offset leads to a year that there is not."""
    with pytest.raises(UsageError, match="no time"):
        parse_time("0001-01-01T00:00+14:00", "since")
