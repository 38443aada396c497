"""Sort what ClickHouse and its driver raise into the four kinds this package acts on.

A code that is in no list is in doubt: the rows may have been written, so the caller looks before it sends again.
Invariant: what ClickHouse says is shown only for codes that are known to carry nothing of a row; of all others the
name and the number.
Code numbers are ClickHouse's own (`src/Common/ErrorCodes.cpp` in its repository).
"""

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from clickhouse_connect.driver.exceptions import (
    ClickHouseError,
    DataError,
    Error,
    ProgrammingError,
    StreamFailureError,
)
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ProxyError, ReadTimeoutError, SSLError

from outbox_pipeline.errors import (
    Answer,
    BatchDataError,
    ConfigurationError,
    FencedError,
    InDoubtError,
    OutboxError,
    PermanentError,
    ServerMemoryError,
    TransientError,
    WitnessError,
    first_line,
)

#: The server did nothing and may do it later: too busy, too many parts, read-only for a moment, Keeper away.
TRANSIENT_CODES = frozenset({202, 203, 225, 242, 252, 285, 439, 473})
#: The server lacks something for a while. A part of an insert may have been written, so these are in doubt; with each
#: stands what to do about it, if it does not pass.
MEMORY_LIMIT_EXCEEDED = 241
SHORTAGES = {
    MEMORY_LIMIT_EXCEEDED: "Give ClickHouse more memory (max_memory_usage, max_server_memory_usage) if this goes on",
    243: "Free or add space on ClickHouse's disk; what waits is then delivered by itself",
}
#: Credentials, grants, names, settings and syntax: nothing changes until a person changes it.
CONFIGURATION_CODES = frozenset(
    {16, 36, 44, 47, 48, 60, 62, 80, 81, 82, 115, 164, 192, 193, 194, 277, 291, 344, 392, 452, 495, 497, 516, 620}
)
#: Of these, what a user's profile forbids: to change a setting, to write, to make a table, to read without an index.
FORBIDDEN_CODES = frozenset({164, 277, 392, 452})
UNKNOWN_SETTING = 115
ACCESS_DENIED = 497
#: What only a statement that makes, changes or drops a table or a database is refused for, before it does anything: a
#: column is there already, a table is there already, a database is not empty, a table is too large to be dropped, a
#: column may not be changed.
CHANGE_CODES = frozenset({15, 57, 219, 359, 524})
#: `throwIf`, and the words by which fence, owner, adoption and deadline in our inserts are told from any other.
FUNCTION_THROW_CODE = 395
FENCED_WORDS = "a later attempt has fenced this one"
FOREIGN_WORDS = "the sender does not own this table"
ADOPTED_WORDS = "another instance has adopted this ledger"
LATE_WORDS = "the insert came after its deadline"
#: What to do about a table that belongs to another outbox.
WAYS_ON = (
    "give this outbox a table of its own with OUTBOX_CLICKHOUSE_TABLE (or another database) and run 'outbox init', or, "
    "for a ledger that was made anew on purpose, run 'outbox init --take-table'."
)
#: The content of the request itself: parsing, types, values, constraints.
DATA_CODES = frozenset({6, 26, 27, 33, 38, 41, 53, 69, 70, 72, 117, 131, 349, 376, FUNCTION_THROW_CODE, 407, 469})
VIOLATED_CONSTRAINT = 469
#: Limits, time, memory, disk, network, cancelled.
LIMIT_CODES = frozenset({158, 159, 160, 201, 209, 210, 241, 243, 307, 394, 396})
#: The codes whose words are shown, because they speak of the server alone: how busy it is, its limits, accounts and
#: grants, the names of tables, columns and settings. Of all others a function in a user's view may say them, and
#: quote what it was given: BAD_ARGUMENTS (36) of a time zone, NOT_IMPLEMENTED (48), SYNTAX_ERROR (62) of `formatQuery`.
TELLING_CODES = frozenset(
    {
        *TRANSIENT_CODES,
        *(CONFIGURATION_CODES - {36, 44, 48, 62, 80}),
        *CHANGE_CODES,
        *LIMIT_CODES,
    }
)
#: What the driver puts before ClickHouse's own words, and what comes behind them: the whole statement, or the URL.
_PREAMBLE = re.compile(r"(Received ClickHouse exception, code: \d+, server response: )?Code: \d+\. DB::\w*Exception: ")
_URL = re.compile(r" \(for url \S+\)$")
_POSTSCRIPT = re.compile(r"[.,:;]? In scope (WITH|SELECT|INSERT)\b.*|( \([A-Z_]+\))? \(for url \S+\)$")
#: How ClickHouse names the view in which an insert failed, as `database.view`, and those through which it came there.
_PUSHING = re.compile(r"while pushing to view ((?:`(?:[^`\\]|\\.)+`|\w+)\.(?:`(?:[^`\\]|\\.)+`|\w+))")
#: It does so behind all else that it says, which may quote an event that has such words too.
_PUSHING_IN_TURN = re.compile(rf"(?:{_PUSHING.pattern}(?: \([^\s()]*\))?(?:: )?)+")
#: The name of an error stands at the very end; words in brackets before it may be an event's.
_NAME = re.compile(r"\((?P<name>[A-Z][A-Z0-9_]+)\)(?: \(version .*\))?(?: \(for url \S+\))?$")

#: OpenSSL's numbers for a certificate that is not valid at this time, and for one that is another host's.
_OUT_OF_TIME = frozenset({9, 10})
_OTHER_HOST = frozenset({62, 64})
#: What a server says of the certificate that it got, or did not get, of us.
_OURS_IS_REFUSED = frozenset(
    {
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_UNKNOWN_CA",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    }
)

#: The address of a proxy may hold a password, so it is not shown.
_PROXY_IS_SET = (
    " A proxy is set in the environment (HTTP_PROXY or HTTPS_PROXY), and the connection to it failed: name the host in"
    " NO_PROXY if it must not go through it."
)


@contextmanager
def translated(where: str, query_id: object = None) -> Iterator[None]:
    """Translate what the driver raises inside the block; *where* names the server without its password.

    The driver's own error goes no further, not as a cause either: Dagster stores and shows the whole chain. With a
    *query_id* the sentence says where ClickHouse keeps the words that it leaves out.
    """
    try:
        yield
    except OutboxError:
        raise
    except (DataError, ValueError, TypeError, UnicodeEncodeError) as error:
        raise BatchDataError(f"The driver cannot encode this for ClickHouse: {type(error).__name__}.") from None
    except (ClickHouseError, HTTPError, OSError) as error:
        raise translate(error, where, query_id) from None


@contextmanager
def answered(where: str) -> Iterator[None]:
    """Translate like `translated`, but keep ClickHouse's words, for the person who wrote the statement.

    PermanentError says that the statement was refused, InDoubtError that a part of it may have been done.
    """
    try:
        yield
    except (ClickHouseError, HTTPError, OSError) as error:
        ours = translate(error, where)
        code = error.code if isinstance(error, Error) else None
        if code is None or isinstance(ours, TransientError):
            raise ours from None
        kind = InDoubtError if code in LIMIT_CODES else PermanentError
        raise kind(_words(error)) from None


def translate(error: Exception, where: str, query_id: object = None) -> OutboxError:
    """Return this package's error for one of the driver's."""
    code = error.code if isinstance(error, Error) else None
    if code is None:
        return _without_code(error, where)
    guarded = _by_our_guards(str(error), where) if code == FUNCTION_THROW_CODE else None
    if guarded is not None:
        return guarded
    said = _told(error, code, query_id)
    ours = _of_code(code, said, where)
    ours.answer = Answer(code, said, _named_views(str(error)))
    return ours


def _named_views(words: str) -> tuple[str, ...]:
    *_, last = ["", *(found[0] for found in _PUSHING_IN_TURN.finditer(words))]
    return tuple(_PUSHING.findall(last))


def _by_our_guards(words: str, where: str) -> OutboxError | None:
    """Return the error for a refusal that our own insert asked for, before it wrote anything; None for any other."""
    if FENCED_WORDS in words:
        return FencedError(f"{where} refused the insert: a later attempt on this batch has begun. Nothing was written.")
    if FOREIGN_WORDS in words:
        return ConfigurationError(f"{where} refused the insert, because the table is not this outbox's: {WAYS_ON}")
    if ADOPTED_WORDS in words:
        return WitnessError(
            f"{where} refused the insert, because another instance of this ledger was adopted and goes on in its "
            "place: stop this one for good. Only if this one is to go on instead, stop the other one for good, then "
            "run 'outbox adopt' here."
        )
    if LATE_WORDS in words:
        return TransientError(
            f"{where} refused the insert, because it arrived after its deadline (OUTBOX_LEASE_SECONDS and a minute "
            "after it was sent): nothing was written, and the batch is tried again. If this repeats, look for what "
            "holds requests back on their way, or raise OUTBOX_LEASE_SECONDS."
        )
    return None


def _words(error: Exception) -> str:
    """Return what ClickHouse says, without what the driver writes before and behind it."""
    text = " ".join(str(error).split())
    return first_line(Exception(_URL.sub("", _PREAMBLE.sub("", text))))


def _sentence(said: str) -> str:
    return said if said.endswith(("?", "!")) else f"{said}."


def _of_code(code: int, said: str, where: str) -> OutboxError:
    if code == 252 and "partitions" in said:
        # The same number means too many parts (wait) and too many partitions in one insert (never works).
        return ConfigurationError(f"{where} refuses the batch: {said}. Raise max_partitions_per_insert_block.")
    if code in TRANSIENT_CODES:
        return TransientError(f"{where} cannot do this now: {said}")
    if code in FORBIDDEN_CODES:
        return _forbidden(where, said)
    if code == UNKNOWN_SETTING:
        return ConfigurationError(
            f"{where} does not know a setting that our statements need: {said}. Update ClickHouse: docs/deploying.md "
            "says from which version on it is supported."
        )
    if code == ACCESS_DENIED:
        return ConfigurationError(
            f"{where} refuses this: {said}. 'outbox doctor' prints the GRANT statements that a delivery lacks; "
            "docs/deploying.md lists the rights of every user."
        )
    if code in CONFIGURATION_CODES:
        return ConfigurationError(
            f"{where} refuses this: {_sentence(said)} Check URL, user and grants, or run 'outbox init'."
        )
    if code in CHANGE_CODES:
        return ConfigurationError(f"{where} refuses this: {_sentence(said)}")
    if code in DATA_CODES:
        return BatchDataError(f"{where} refuses the content: {said}")
    kind = ServerMemoryError if code == MEMORY_LIMIT_EXCEEDED else InDoubtError
    remedy = f". {SHORTAGES[code]}." if code in SHORTAGES else ""
    return kind(f"{where} may or may not have done this: {said}{remedy}")


def _forbidden(where: str, said: str) -> ConfigurationError:
    return ConfigurationError(
        f"{where} refuses this because of the profile of its user: {said}. As an administrator of ClickHouse let the "
        "profile allow it; 'outbox doctor' names all that it must allow."
    )


def _told(error: Exception, code: int, query_id: object) -> str:
    # ClickHouse quotes the offending value in many ways; contexts belong in no log, no ledger and no UI. The name of
    # the error and of the constraint say what to look for.
    text = " ".join(str(error).split())
    if code in TELLING_CODES:
        return _POSTSCRIPT.sub("", _PREAMBLE.sub("", first_line(error))).rstrip(" .,:")
    name = _NAME.search(text)
    said = f"{name['name'] if name else 'error'} (code {code})"
    constraint = re.search(r"Constraint `(?P<name>[^`]+)`", text) if code == VIOLATED_CONSTRAINT else None
    if constraint:
        said += f", constraint {constraint['name']}"
    if query_id is not None:
        said += f". The rest may quote events: see system.query_log in ClickHouse, query_id {query_id}"
    return said


def _without_code(error: Exception, where: str) -> OutboxError:
    if isinstance(error, ProgrammingError):
        # The driver sends nothing with a setting that ClickHouse has told it the user may not change.
        return _forbidden(where, first_line(error))
    # No code means that no server answered, or that something between us did (429, 503), which may quote what it got.
    refused = _never_arrived(error)
    # What a proxy did with a request is not known, so its failure alone is no proof that nothing arrived.
    proxy = _PROXY_IS_SET if any(isinstance(cause, ProxyError) for cause in _causes(error)) else ""
    if refused is not None:
        return TransientError(
            f"{where} cannot be reached ({refused}): check that it runs and OUTBOX_CLICKHOUSE_URL.{proxy}"
        )
    unsafe = _refused_by_tls(error)
    if unsafe is not None:
        return ConfigurationError(f"{where} {unsafe}{proxy}")
    if _is_no_tls(error):
        # Something between may answer so when the request is on its way already.
        return InDoubtError(
            f"{where} answers without TLS: correct the port in OUTBOX_CLICKHOUSE_URL, or write http:// if it has none."
            f"{proxy}"
        )
    if any(isinstance(cause, ReadTimeoutError) for cause in _causes(error)):
        return InDoubtError(
            f"{where} took a request and has not answered it in time: look whether it hangs or has too much to do, and "
            f"restart it if it hangs.{proxy}"
        )
    status = _http_status(str(error))
    if status is not None:
        said = f"{where}: HTTP status {status}"
    elif isinstance(error, StreamFailureError):
        said = f"{where}: the answer broke off"
    else:
        said = f"{where}: {_POSTSCRIPT.sub('', first_line(error))}"
    if status in (429, 503):
        return TransientError(f"ClickHouse is busy: {said}")
    if status in (401, 403):
        return ConfigurationError(f"ClickHouse refuses the credentials: {said}. Check OUTBOX_CLICKHOUSE_URL.")
    if status in (413, 414):
        # A server in between refuses it before it has passed anything on.
        return ConfigurationError(
            f"What stands in front of ClickHouse takes no request as large as this: {said}. Let it take addresses of "
            "8 kB and bodies of any size (in nginx, client_max_body_size 0)."
        )
    if status == 404:
        return ConfigurationError(f"What answers there is no ClickHouse server: {said}. Check OUTBOX_CLICKHOUSE_URL.")
    return InDoubtError(f"The connection to ClickHouse broke: {said}{proxy and '.'}{proxy}")


def _http_status(said: str) -> int | None:
    # The driver keeps the status only in these words; bare digits could be a port's or a database name's.
    found = re.match(r"HTTP driver received HTTP status (\d{3})\b", said)
    return int(found[1]) if found else None


def _refused_by_tls(error: BaseException) -> str | None:
    """Return what is wrong with a certificate and what to do, None where that is not what failed.

    Nothing was sent then, or nothing of it was read.
    """
    causes = list(_causes(error))
    if wrong := next((cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)), None):
        return f"has a certificate that is not trusted ({wrong.verify_message.rstrip('.')}): {_way_to_trust(wrong)}."
    reasons = {cause.reason for cause in causes if isinstance(cause, ssl.SSLError)}
    if reasons & _OURS_IS_REFUSED:
        return (
            "does not take our certificate, or wants one: name it in OUTBOX_CLICKHOUSE_URL as "
            "?client_cert=/path/to/cert.pem&client_cert_key=/path/to/key.pem."
        )
    return None


def _is_no_tls(error: BaseException) -> bool:
    return any(cause.reason == "WRONG_VERSION_NUMBER" for cause in _causes(error) if isinstance(cause, ssl.SSLError))


def _way_to_trust(wrong: ssl.SSLCertVerificationError) -> str:
    if wrong.verify_code in _OUT_OF_TIME:
        return "renew it on the server, or look at the clock of this machine"
    if wrong.verify_code in _OTHER_HOST:
        return "write the host in OUTBOX_CLICKHOUSE_URL as the certificate names it"
    return (
        "name the file with the certificate of the authority that signed it, or with itself if it signs itself, in "
        "OUTBOX_CLICKHOUSE_URL as ?ca_cert=/path/to/ca.pem"
    )


def _never_arrived(error: BaseException | None) -> str | None:
    """Return why no connection was made, None when one was: then the request may have been carried out."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ConnectionRefusedError | socket.gaierror):
            return cause.strerror or "connection refused"
    # urllib3's word for every connection that was not made, timeouts and refusals alike.
    return "no connection" if any(isinstance(cause, ConnectTimeoutError) for cause in causes) else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # urllib3 keeps the cause of a MaxRetryError in `reason`, that of its SSLError among the arguments alone.
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        kept = [getattr(error, "reason", None), *(error.args[:1] if isinstance(error, SSLError) else ())]
        inner = next((each for each in kept if isinstance(each, BaseException)), None)
        error = inner or error.__cause__ or error.__context__
