"""Event files: a context is kept as it is written, and a line that is no event is named."""

import io
import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_pipeline import event_files
from outbox_pipeline.event_files import EventFileError, read_events
from outbox_pipeline.events import EventRow

_SPACES = st.text(" \t\r", max_size=3)


def rows(content: bytes | str, *, context_max_bytes: int = 1_000_000) -> list[EventRow]:
    """Return the events of a file with this content."""
    stream = io.BytesIO(content if isinstance(content, bytes) else content.encode())
    return list(read_events(stream, "events.jsonl", context_max_bytes=context_max_bytes))


def line(context: str = "{}", **others: object) -> str:
    """Return a line with this context as it stands."""
    head = json.dumps({"event_type": "t", **others})
    return f'{head[:-1]}, "event_context": {context}}}'


def test_every_field_is_read() -> None:
    """Each key of a line reaches its column."""
    event_id = "412d8176-416a-5d43-8b59-333d72dce3f0"
    content = line(
        '{"a": 1}',
        event_id=event_id,
        event_date_time="2026-01-02T03:04:05.678901+02:00",
        environment="prod",
        metadata_version=7,
        trace_context="00-ab-cd-01",
    )

    (row,) = rows(content)

    assert (row.event_id, row.event_type, row.environment) == (UUID(event_id), "t", "prod")
    assert row.event_date_time == datetime(2026, 1, 2, 1, 4, 5, 678901, tzinfo=UTC)
    assert (row.metadata_version, row.trace_context, row.event_context) == (7, "00-ab-cd-01", '{"a": 1}')


@pytest.mark.parametrize(
    "context",
    [
        '{"price": 1.10, "sum": 0.1000000000000000055511151231257827}',
        '{"huge": 1e400, "tiny": -1E-999, "zero": -0}',
        f'{{"long": {"9" * 5000}}}',
        r'{"nul": "\u0000", "lone": "\ud800", "escaped": "\/ \u00e9"}',
        '{"key": 1, "key": 2}',
        '{ \t"spaced" :  [ 1 ,2 ] ,\r "event_context": {"x": "}"} }',
        '{"text": "é😀\u2028\x85 \\" } {"}',
        "{}",
    ],
)
def test_context_is_kept_character_for_character(context: str) -> None:
    """Nothing of a context is written anew: digits, escapes, doubled keys and spaces stay as they are."""
    assert [row.event_context for row in rows(line(context))] == [context]


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists),
    ),
    st.lists(_SPACES, min_size=4, max_size=4),
    st.permutations(["event_type", "event_context", "metadata_version"]),
)
def test_context_is_found_wherever_it_stands(value: dict[str, object], spaces: list[str], order: list[str]) -> None:
    """Order of keys and spaces between them do not change what is taken as the context."""
    context = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    texts = {"event_type": '"t"', "event_context": context, "metadata_version": "3"}
    before, after, around, end = spaces
    members = f",{around}".join(f'{before}"{key}"{after}:{around}{texts[key]}{before}' for key in order)

    (row,) = rows(f"{after}{{{members}}}{end}\n")

    assert (row.event_context, row.event_type, row.metadata_version) == (context, "t", 3)


def test_byte_order_mark_and_blank_lines_are_passed_over() -> None:
    """Files from Windows editors are read; line numbers count blank lines too."""
    content = b"\xef\xbb\xbf" + line().encode() + b"\r\n\r\n  \n" + line().encode()

    assert len(rows(content)) == 2
    with pytest.raises(EventFileError, match=r"^events\.jsonl:5: "):
        rows(content + b"\nnonsense")


def test_missing_identity_and_time_are_filled_in() -> None:
    """A line needs only a type and a context; null means the same as leaving a key out."""
    first, second = rows(line() + "\n" + line(event_id=None, event_date_time=None, metadata_version=None))

    assert first.event_id != second.event_id
    assert first.metadata_version == second.metadata_version == 1
    assert first.event_date_time.utcoffset() is not None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "is not valid JSON: Expecting '{' at column 1"),
        ('{"event_type": "t"', "is not valid JSON: Expecting ',' at column 19"),
        ('{"event_type": "t",}', "is not valid JSON: Expecting a key in double quotes at column 20"),
        (line() + " x", "is not valid JSON: Something follows the object"),
        ("{}", "event_type and event_context must be given"),
        ('{"event_type": "t"}', "event_context must be given"),
        ('{"event_context": {}}', "event_type must be given"),
        (line(contxt={}), 'the key "contxt" is not known; known are event_type, event_context, event_id'),
        ('{"event_type": "a", "event_type": "b"}', "event_type is given twice"),
        (line("[1]"), "event_context: must be a JSON object"),
        (line("null"), "event_context: must be a JSON object"),
        (line('{"a": NaN}'), "is not valid JSON: there is no number NaN"),
        (line('{"a": -Infinity}'), "is not valid JSON: there is no number -Infinity"),
        (line('{"a": "\t"}'), "is not valid JSON: Invalid control character"),
        (line('{"a":' * 201 + "1" + "}" * 201), "event_context: is nested deeper than 200 levels"),
        (line('{"a":' + "[" * 99_999 + "]" * 99_999 + "}"), "event_context: is nested deeper than 200 levels"),
        (line(event_id="x"), "event_id: must be a UUID"),
        (line(event_date_time="2026-01-02T03:04:05"), "event_date_time: must have a time zone"),
        (line(event_date_time="yesterday"), "event_date_time: must be ISO 8601"),
        (line(event_date_time=1767225600), "event_date_time: must be a text"),
        (line(metadata_version=1.5), "metadata_version: must be an integer"),
        (line(environment=""), "environment: must not be empty"),
        (line(trace_context=1), "trace_context: must be a string"),
        (line(event_type="x" * 501), "event_type: has 501 bytes in UTF-8, more than the 500"),
        (line(environment="x" * 201), "environment: has 201 bytes in UTF-8, more than the 200"),
        (line(trace_context="x" * 8_193), "trace_context: has 8,193 bytes in UTF-8, more than the 8,192"),
        (b'{"event_type": "\xff"}', "is not UTF-8: byte 0xff at column 17"),
        (line('{"a": "'.replace("a", "\udca0")).encode("utf-8", "surrogatepass"), "is not UTF-8: byte 0xed"),
        (line().encode("utf-16"), "is not UTF-8: byte 0xff at column 1"),
    ],
)
def test_bad_line_is_named_with_its_reason(content: bytes | str, reason: str) -> None:
    """The message is FILE:LINE: reason, and the events before that line had been read."""
    content = content if isinstance(content, bytes) else content.encode()

    with pytest.raises(EventFileError) as caught:
        rows(line().encode() + b"\n" + content)

    assert str(caught.value).startswith(f"events.jsonl:2: {reason}")
    assert caught.value.line_number == 2


def test_context_at_the_limits_is_read() -> None:
    """The largest and the deepest allowed context pass; one byte more is refused."""
    deepest = '{"a":' * 200 + "1" + "}" * 200

    assert rows(line(deepest))[0].event_context == deepest
    assert len(rows(line('{"é":1}'), context_max_bytes=8)) == 1
    with pytest.raises(EventFileError, match="has 8 bytes, more than OUTBOX_CONTEXT_MAX_BYTES allows"):
        rows(line('{"é":1}'), context_max_bytes=7)


def test_endless_line_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is one huge line is refused without holding it in memory."""
    monkeypatch.setattr(event_files, "LINE_MAX_BYTES", 50)
    stream = io.BytesIO(b"x" * 1000)

    with pytest.raises(EventFileError, match="is longer than 50 bytes"):
        list(read_events(stream, "events.jsonl", context_max_bytes=10))

    assert stream.tell() == 51
