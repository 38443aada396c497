"""The errors this package raises, sorted by what the caller should do next.

Foreign exceptions (psycopg, clickhouse-connect, ADBC) are translated into these once, where they are caught, so nothing
above the stores ever matches on driver classes or message text. A message is one sentence that says what is wrong and
what to do. Invariant: it carries neither a password nor what is in an event, and no foreign error hangs on it as a
cause, whose words would be shown with it.
"""

import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID


@dataclass(frozen=True)
class Answer:
    """ClickHouse's answer to a request that it did not carry out, or not wholly: its code, and what may be told of it.

    `views` are those that it seems to name as the place of the failure, the innermost first. Compare them with the
    views that there are before one is shown, because the words of an event may look like it.
    """

    code: int
    said: str
    views: tuple[str, ...] = ()


class OutboxError(Exception):
    """Anything this package raises on purpose."""

    #: None where ClickHouse did not answer, or nothing was written for sure because our own insert refused itself.
    answer: Answer | None = None


class TransientError(OutboxError):
    """Nothing was done and the same request may work later: a server is down, busy or read-only for a moment."""


class InDoubtError(OutboxError):
    """The request may have been carried out, wholly or partly: look before sending anything again."""


class ServerMemoryError(InDoubtError):
    """ClickHouse had not enough memory for a request; an insert of a whole batch may be too large for it."""


class PermanentError(OutboxError):
    """Trying again changes nothing until a person or a deploy does."""


class ConfigurationError(PermanentError):
    """A setting, a grant, a schema or a server is not as it must be; the message says what to fix. Nothing is lost."""


class SettingsError(ConfigurationError):
    """An environment variable has a value that cannot be; the message names the variable, never the value."""


class BatchDataError(PermanentError):
    """ClickHouse refuses the content of a batch, or PostgreSQL no longer holds what the ledger says."""


class ViewError(PermanentError):
    """A view behind the event log may lack rows that the log has.

    `is_final`: nothing is sent again by itself, a person decides.
    """

    def __init__(self, message: str, *, is_final: bool) -> None:
        """Say which view, what follows and what to do."""
        super().__init__(message)
        self.is_final = is_final


class ProofError(OutboxError):
    """ClickHouse took a batch and still does not hold exactly what the ledger expects."""


class LedgerError(PermanentError):
    """The ledger met a state in which going on could lose or double events, so it stopped."""


class WitnessError(LedgerError):
    """ClickHouse has deliveries on record that this ledger does not know: it was set back, or is one of two copies."""


class LostDeliveriesError(LedgerError):
    """ClickHouse has no longer on record what this ledger has delivered: it was restored from a backup."""


class ConstraintError(LedgerError):
    """A constraint or a trigger of the schema refuses what was to be written."""


class LeaseLostError(OutboxError):
    """Another run has taken this batch over; whatever this one still wants to write is refused."""

    def __init__(self, batch_id: UUID, attempt: int, *, reason: str = "another run has taken it over") -> None:
        """Name the batch and the attempt that lost it."""
        super().__init__(f"Attempt {attempt} no longer holds batch {batch_id}: {reason}. Nothing was written by it.")
        self.batch_id = batch_id
        self.attempt = attempt


class FencedError(OutboxError):
    """ClickHouse refused an insert because a later attempt on the same batch is on record there."""


class UsageError(OutboxError):
    """What the words of a command line or of a run's config ask for cannot be meant; nothing was done."""


class QuarantineError(OutboxError):
    """What was asked of the quarantine does not fit what is held there; nothing was changed."""


class PublishError(OutboxError, ValueError):
    """An event was refused before anything was written; the caller's transaction is as it was."""

    def __init__(self, field: str, problem: str) -> None:
        """Name the offending field and what is wrong with it."""
        super().__init__(f"{field}: {problem}")
        self.field = field


class NoTransactionError(OutboxError):
    """`publish_event` was called on a connection in autocommit, where event and business data could part."""


class DefectError(Exception):
    """Something failed over a batch that this package does not know; told by kind and place, with the frames."""


# Greedy up to the last @ of the word: user and password may hold slashes and @ themselves, and showing too little is no
# harm. Each pattern begins where a word or a keyword does, so that a megabyte of letters is read once.
_PASSWORD = re.compile(r"(?<![a-z0-9+.-])(?P<user>[a-z][a-z0-9+.-]*://[^:\s]*):\S*@", re.IGNORECASE)
#: sslpassword, access_token, client_secret, api_key, X-Amz-Signature: in URLs, in libpq's key='value', in JSON.
_PARAMETER = re.compile(
    r"""(?P<name>(?:password|passwd|pwd|passphrase|token|secret|credential|signature|\bsig"""
    r"""|(?:api|access|private|shared|auth)[_-]?key)[\w-]{0,40}(?:\s*=|['"]\s*:)\s*)"""
    r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?:\\.|[^\s&\\])+)""",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(?P<name>\b(?:Authorization:\s*\w+|Bearer)\s+)[\w.~+/=-]+", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """Return *text* with passwords in URLs, and values of parameters that are named like secrets, replaced by stars."""
    starred = _PASSWORD.sub(r"\g<user>:***@", text)
    return _HEADER.sub(r"\g<name>***", _PARAMETER.sub(r"\g<name>***", starred))


def sentence_of(error: BaseException) -> str:
    """Return what may be said of *error* in ledger, log and UI: our own sentence, of a foreign one its kind and place.

    The words of a foreign error may quote an event.
    """
    if isinstance(error, OutboxError | DefectError):
        return first_line(error)
    return f"{type(error).__name__} at {_place(error)}; its words are left out, because they may quote an event"


def _place(error: BaseException) -> str:
    package = Path(__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(package)]
    if not ours:
        return "an unknown place"
    return f"{Path(ours[-1].filename).relative_to(package.parent)}:{ours[-1].lineno}"


def first_line(error: BaseException, *, limit: int = 500) -> str:
    """Return what *error* says in one line without secrets, at most *limit* characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = without_secrets(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
