"""What the engine raises becomes a code, a text and a status."""

import pytest

from outbox_pipeline.embedded.server_errors import from_engine


@pytest.mark.parametrize(
    ("message", "code", "status"),
    [
        ("Code: 60. DB::Exception: Table default.t does not exist. (UNKNOWN_TABLE)", 60, 404),
        ("Streaming query failed: Code: 395. DB::Exception: thrown. (FUNCTION_THROW_IF)", 395, 500),
        ("Code: 102. DB::NetException: x: Code: 27. DB::Exception: Cannot parse", 27, 400),
        ("Code: 117. DB::Exception: the value is 'Code: 5' (INCORRECT_DATA)", 117, 400),
        ("something else", 1001, 500),
    ],
)
def test_last_code_of_a_message_is_the_error(message: str, code: int, status: int) -> None:
    """The last `Code: N. DB::` counts, text that only looks like one does not."""
    error = from_engine(RuntimeError(message))

    assert (error.code, error.status) == (code, status)
    assert error.text.startswith("Code: ")


def test_message_that_is_not_utf8_keeps_its_code() -> None:
    """The binding fails to decode a message quoting raw bytes; the message is taken from that failure."""
    raw = b"Code: 27. DB::Exception: Cannot parse \xff. (CANNOT_PARSE)"
    error = from_engine(UnicodeDecodeError("utf-8", raw, 38, 39, "invalid start byte"))

    assert error.code == 27
    assert "\\xff" in error.text
