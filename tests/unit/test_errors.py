"""Errors: no secret survives a message, and foreign errors become one of the four kinds."""

import re
import ssl
import time
import traceback

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, StreamFailureError
from urllib3.connection import HTTPConnection
from urllib3.exceptions import MaxRetryError, NewConnectionError, SSLError

from outbox_pipeline.clickhouse.errors import (
    ADOPTED_WORDS,
    CHANGE_CODES,
    CONFIGURATION_CODES,
    DATA_CODES,
    FENCED_WORDS,
    FOREIGN_WORDS,
    LATE_WORDS,
    TELLING_CODES,
    TRANSIENT_CODES,
    translate,
    translated,
)
from outbox_pipeline.errors import (
    Answer,
    BatchDataError,
    ConfigurationError,
    FencedError,
    InDoubtError,
    OutboxError,
    TransientError,
    WitnessError,
    first_line,
    sentence_of,
    without_secrets,
)
from outbox_pipeline.settings import shown_url


@pytest.mark.parametrize(
    "text",
    [
        "http://user:secret@host:8123/db",
        "http://user:sec/ret@host/",
        "postgresql+psycopg://user:se@cret@host/db failed, see https://example.org",
        "postgresql://:secret@host",
        "connection to host=db user=u password=secret failed",
        "dsn password='sec ret' host=x",
        r"dsn password='sec\'sec' host=x",
        r"dsn password=sec\ sec host=x",
        "postgresql://host/db?user=u&sslpassword=secret cannot be reached",
        "https://host/?access_token=secret&x=1",
        "https://hooks.example.org/?token=secret",
        "https://host/?X-Amz-Signature=secret",
        "https://host/?sig=secret",
        "apikey=secret",
        "api_key = secret",
        "client_key_password='secret'",
        "AWS_ACCESS_KEY=secret",
        '{"password": "secret", "x": 1}',
        "{'auth_token': 'secret'}",
        "Authorization: Bearer sec.ret",
        "http://ada@example.org:secret@host/",
        "http://us/er:secret@host/",
        "http://us#er:se?cret@host/",
    ],
)
def test_a_password_is_never_shown(text: str) -> None:
    """Whatever form a password comes in, stars stand in its place."""
    assert "sec" not in without_secrets(text)
    assert "***" in without_secrets(text)


def test_what_is_no_secret_stays() -> None:
    """Hosts, users and databases are what a person needs to find the mistake."""
    assert without_secrets("http://user:x@host:8123/db") == "http://user:***@host:8123/db"
    for text in (
        "see http://host:8123/db",
        "password authentication failed for user u",
        "write the password: it is missing",
        "Key (event_id)=(1) already exists",
        "postgresql+psycopg://u@/db?host=/run&sslmode=verify-full&sslrootcert=/ca.pem",
    ):
        assert without_secrets(text) == text


def test_the_value_of_a_secret_is_starred_and_its_name_stays() -> None:
    """A person sees which parameter it was."""
    assert without_secrets("?client_secret=x&y=1") == "?client_secret=***&y=1"


def test_a_url_with_a_space_shows_no_password() -> None:
    """A space, which no URL may have, does not end the search for its password."""
    assert shown_url("postgresql://user:sec ret@host/db") == "postgresql://user:***@host/db"


def test_a_long_word_is_read_once() -> None:
    """Looking for secrets in a megabyte without spaces takes a moment, not a minute."""
    started = time.process_time()

    assert without_secrets("a" * 1_000_000 + "token" * 20_000).endswith("token")

    assert time.process_time() - started < 2


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


def refused_by_tls(cause: ssl.SSLError) -> OutboxError:
    """Return ours for what the driver makes of an error of TLS."""
    error = OperationalError("Error executing HTTP request attempt 1 (https://h:8443)")
    error.__cause__ = MaxRetryError(None, "/?query_id=1", SSLError(cause))  # type: ignore[arg-type]  # no pool needed
    return translate(error, "ClickHouse at https://h:8443/db")


@pytest.mark.parametrize(
    ("code", "said", "remedy"),
    [
        (10, "certificate has expired", "renew it on the server"),
        (9, "certificate is not yet valid", "clock of this machine"),
        (18, "self-signed certificate", r"\?ca_cert=/path/to/ca.pem"),
        (20, "unable to get local issuer certificate", r"\?ca_cert=/path/to/ca.pem"),
        (62, "Hostname mismatch, certificate is not valid for 'h'.", "write the host .* as the certificate names it"),
        (64, "IP address mismatch", "write the host .* as the certificate names it"),
    ],
)
def test_a_certificate_that_is_not_trusted_has_its_remedy(code: int, said: str, remedy: str) -> None:
    """Trying again changes nothing, so it is no outage; what helps depends on what is wrong with it."""
    cause = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    cause.verify_code, cause.verify_message = code, said

    ours = refused_by_tls(cause)

    assert type(ours) is ConfigurationError
    assert re.search(
        rf"at https://h:8443/db has a certificate that is not trusted \({said[:20]}.*\): .*{remedy}", str(ours)
    )


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", ConfigurationError),
        ("TLSV1_ALERT_UNKNOWN_CA", ConfigurationError),
        ("WRONG_VERSION_NUMBER", InDoubtError),
        ("UNEXPECTED_EOF_WHILE_READING", InDoubtError),
    ],
)
def test_what_tls_says_of_us_is_told_from_a_broken_connection(reason: str, kind: type[OutboxError]) -> None:
    """A connection that breaks off under TLS may have carried the request."""
    cause = ssl.SSLError(1, f"[SSL: {reason}]")
    cause.reason = reason

    assert type(refused_by_tls(cause)) is kind


def test_what_the_driver_cannot_encode_is_a_data_error() -> None:
    """An error of the client's serialisation is about the rows, not about the server."""
    with pytest.raises(BatchDataError), translated("there"):
        raise ValueError("out of range")


#: What ClickHouse says of a row, by code: a view's function was given it.
QUOTING = {
    36: "Cannot load time zone PII-ada",
    38: "Cannot parse date here: PII-ada",
    48: "PII-ada is not implemented",
    62: "Syntax error: failed at position 1 (PII-ada)",
    395: "Value passed to 'throwIf' function is non-zero: PII-ada",
    469: "Constraint `c` for table t is violated at row 1. Column values: x = 'PII-ada'",
    675: "Cannot parse IPv4 PII-ada",
    691: "Unknown element 'PII-ada' for enum",
    1001: "std::exception: PII-ada",
    999_999: "PII-ada",
}


@pytest.mark.parametrize("code", QUOTING)
def test_words_that_may_quote_a_row_are_left_out(code: int) -> None:
    """Of an error that a row can cause, name, number and constraint are told, and where ClickHouse keeps the rest."""
    text = f"Code: {code}. DB::Exception: {QUOTING[code]} (PII_ADA): while pushing to view v. (ITS_NAME)"

    said = str(translate(server_error(code, f"{text} (version 26.9.2.1) (for url http://h:1)"), "there", "outbox-1"))

    assert "PII" not in said
    assert f"ITS_NAME (code {code})" in said
    assert "system.query_log in ClickHouse, query_id outbox-1" in said


def test_an_answer_is_kept_with_the_views_that_it_names() -> None:
    """What ClickHouse answered with is told from a lost answer; of views behind each other it names the inner first."""
    words = (
        "Code: 6. DB::Exception: x: while pushing to view d.inner: while pushing to view d.`my view` (0a-1b). (NAME)"
    )

    error = translate(server_error(6, words), "there")

    assert error.answer == Answer(6, "NAME (code 6)", ("d.inner", "d.`my view`"))
    quoting = words.replace("x:", "Cannot parse 'y while pushing to view d.other: while pushing to view d.third':")
    assert translate(server_error(6, quoting), "there").answer == error.answer
    assert translate(StreamFailureError("half"), "there").answer is None


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (FENCED_WORDS, FencedError),
        (FOREIGN_WORDS, ConfigurationError),
        (ADOPTED_WORDS, WitnessError),
        (LATE_WORDS, TransientError),
    ],
)
def test_a_refusal_of_our_own_is_no_answer_to_look_for_bad_events_by(words: str, kind: type[OutboxError]) -> None:
    """Each guard of an insert has words of its own, and none of them says anything of the events."""
    error = translate(server_error(395, f"Code: 395. DB::Exception: {words}: while executing. (ITS_NAME)"), "there")

    assert (type(error), error.answer) == (kind, None)


def test_every_code_that_tells_its_words_is_a_known_one() -> None:
    """Words are shown for codes in the list alone, and none of the list is one that a row can cause."""
    assert not TELLING_CODES & (DATA_CODES | {36, 44, 48, 62, 80})


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            DatabaseError(
                "HTTP driver received HTTP status 502, server response: <html>PII-ada</html> (for url http://h)"
            ),
            "HTTP status 502",
        ),
        (StreamFailureError("the last bytes of the answer were PII-ada"), "broke off"),
    ],
    ids=["status", "stream"],
)
def test_what_comes_without_a_code_is_not_quoted(error: Exception, words: str) -> None:
    """What a proxy answers, or what an answer that broke off ended with, may be anything."""
    said = str(translate(error, "there"))

    assert "PII" not in said
    assert words in said


def test_no_foreign_error_hangs_on_ours() -> None:
    """A translated error has no cause that somebody could show with it."""
    with pytest.raises(OutboxError) as raised, translated("there"):
        raise server_error(675, "Cannot parse IPv4 PII-ada")

    assert "PII-ada" not in "".join(traceback.format_exception(raised.value))


def test_a_foreign_error_is_told_by_kind_and_place() -> None:
    """Of an error that is not ours only its class and the place in this package are told."""
    with pytest.raises(TypeError) as raised:
        first_line(ValueError("PII-ada"), limit="PII-ada")  # type: ignore[arg-type]  # fails in there

    assert sentence_of(raised.value).startswith("TypeError at outbox_pipeline/errors.py:")
    assert sentence_of(KeyError("PII-ada")).startswith("KeyError at an unknown place;")
    assert sentence_of(TransientError("PostgreSQL is away")) == "PostgreSQL is away"


def test_what_a_change_of_tables_is_refused_for_leaves_no_doubt() -> None:
    """A table that is there already was not made: nobody need look whether the statement was carried out."""
    said = "Code: 57. DB::Exception: Table default.a already exists."
    for code in CHANGE_CODES:
        refused = translate(server_error(code, said), "ClickHouse")
        assert isinstance(refused, ConfigurationError)
        assert str(refused) == "ClickHouse refuses this: Table default.a already exists."


def test_a_question_of_clickhouse_ends_as_one() -> None:
    """Its guess at a name is followed by our next step, and by no second mark."""
    said = (
        "Code: 60. DB::Exception: Unknown table 'event_log'. Maybe you meant default.event_log_x?. (for url http://h)"
    )

    assert "Maybe you meant default.event_log_x? Check URL" in str(translate(server_error(60, said), "ClickHouse"))
