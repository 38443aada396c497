"""Errors: no secret survives a message, and foreign errors become one of the four kinds."""

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from urllib3.connection import HTTPConnection
from urllib3.exceptions import MaxRetryError, NewConnectionError

from outbox_pipeline.clickhouse.errors import CONFIGURATION_CODES, DATA_CODES, TRANSIENT_CODES, translate, translated
from outbox_pipeline.errors import (
    BatchDataError,
    ConfigurationError,
    InDoubtError,
    OutboxError,
    TransientError,
    first_line,
    without_secrets,
)


@pytest.mark.parametrize(
    "text",
    [
        "http://user:secret@host:8123/db",
        "http://user:sec/ret@host/",
        "postgresql+psycopg://user:se@cret@host/db failed, see https://example.org",
        "postgresql://:secret@host",
        "connection to host=db user=u password=secret failed",
        "dsn password='sec ret' host=x",
    ],
)
def test_a_password_is_never_shown(text: str) -> None:
    """Whatever form a password comes in, stars stand in its place."""
    assert "sec" not in without_secrets(text)
    assert "***" in without_secrets(text)


def test_what_is_no_secret_stays() -> None:
    """Hosts, users and databases are what a person needs to find the mistake."""
    assert without_secrets("http://user:x@host:8123/db") == "http://user:***@host:8123/db"
    assert without_secrets("see http://host:8123/db") == "see http://host:8123/db"


def test_an_error_is_one_bounded_line() -> None:
    """Stack traces and long server texts become one line."""
    assert first_line(ValueError("a\n  b")) == "a b"
    assert len(first_line(ValueError("x" * 9999))) == 500


def server_error(code: int, text: str = "said the server") -> DatabaseError:
    """An error as the driver raises it for a server's answer."""
    error = DatabaseError(text)
    error.code = code
    return error


@pytest.mark.parametrize(
    ("codes", "kind"),
    [(TRANSIENT_CODES, TransientError), (CONFIGURATION_CODES, ConfigurationError), (DATA_CODES, BatchDataError)],
)
def test_each_listed_code_has_its_kind(codes: frozenset[int], kind: type[OutboxError]) -> None:
    """Codes that are known lead to retry, stop, or quarantine."""
    assert {type(translate(server_error(code), "there")) for code in codes} == {kind}


def test_an_unknown_code_is_in_doubt() -> None:
    """What nobody has thought of is looked at before anything is sent again."""
    assert isinstance(translate(server_error(999_999), "there"), InDoubtError)
    assert isinstance(translate(OperationalError("Connection reset by peer"), "there"), InDoubtError)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, TransientError),
        (503, TransientError),
        (401, ConfigurationError),
        (403, ConfigurationError),
        (404, ConfigurationError),
        (502, InDoubtError),
    ],
)
def test_a_status_without_a_code_comes_from_something_in_between(status: int, kind: type[OutboxError]) -> None:
    """A proxy that is busy or refuses us is told apart by its status; any other status leaves the outcome open."""
    error = DatabaseError(f"HTTP driver received HTTP status {status}, server response: busy (for url http://host:1)")

    assert type(translate(error, "there")) is kind


@pytest.mark.parametrize("digits", ["401", "403", "404", "429", "503"])
def test_digits_of_an_address_are_no_status(digits: str) -> None:
    """A broken connection is in doubt whatever numbers its host, port and database are made of."""
    error = OperationalError(f"Error ('Connection aborted.') executing HTTP request attempt 1 (http://host:4{digits})")

    assert isinstance(translate(error, f"ClickHouse at http://host:4{digits}/t_{digits}"), InDoubtError)


def test_the_next_step_is_not_pushed_out_by_a_quoted_statement() -> None:
    """Of an answer that quotes a statement of kilobytes, the sentence has ClickHouse's reason and what to do."""
    said = "Received ClickHouse exception, code: 60, server response: Code: 60. DB::Exception: Unknown table expression"
    statement = "WITH reinterpretAsUInt64(reverse(substring(bytes, 1, 8))) AS high, " * 50
    error = server_error(60, f"{said} identifier 'event_log'. In scope {statement}SELECT count() FROM event_log")

    assert str(translate(error, "there")) == (
        "there refuses this: Unknown table expression identifier 'event_log'. "
        "Check URL, user and grants, or run 'outbox init'."
    )
    error = server_error(
        60, "Code: 60. DB::Exception: Table event_log does not exist. (UNKNOWN_TABLE) (for url http://h)"
    )
    assert str(translate(error, "there")).startswith("there refuses this: Table event_log does not exist. Check")


def test_one_number_with_two_meanings_is_told_apart_by_its_text() -> None:
    """Too many parts passes with time; too many partitions in one insert never does."""
    assert isinstance(translate(server_error(252, "Too many parts (300)"), "there"), TransientError)
    assert isinstance(
        translate(server_error(252, "Too many partitions for single INSERT block"), "there"), ConfigurationError
    )


def test_a_refused_connection_did_nothing() -> None:
    """When no connection was made the request never left, so it may simply be sent again."""
    refused = NewConnectionError(HTTPConnection("host"), "refused")
    refused.__cause__ = ConnectionRefusedError(111, "Connection refused")
    error = OperationalError("Error executing HTTP request")
    error.__cause__ = MaxRetryError(None, "/?query_id=1", refused)  # type: ignore[arg-type]  # no pool needed

    ours = translate(error, "ClickHouse at http://host")

    assert isinstance(ours, TransientError)
    assert str(ours).startswith("ClickHouse at http://host cannot be reached (Connection refused)")


def test_what_the_driver_cannot_encode_is_a_data_error() -> None:
    """An error of the client's serialisation is about the rows, not about the server."""
    with pytest.raises(BatchDataError), translated("there"):
        raise ValueError("out of range")
