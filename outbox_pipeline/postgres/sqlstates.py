"""What each SQLSTATE that PostgreSQL can answer with means to this package: its kind, and what to do about it.

Imports no driver, so that everything that talks to PostgreSQL sorts by the same table. Invariant: everything that
carries a SQLSTATE is an answer of a server that was reached, and becomes one sentence with the state in it. The
server's words are part of it only where they speak of the server alone; what may quote a row is told by name.
"""

from dataclasses import dataclass

from outbox_pipeline.errors import ConfigurationError, ConstraintError, LedgerError, OutboxError, TransientError


@dataclass(frozen=True)
class Meaning:
    """How a state is told and acted on; *next_step* is for a person, empty where the words say it all.

    In it `{variable}` stands for the setting that leads to the server.
    """

    kind: type[OutboxError]
    next_step: str = ""
    has_words: bool = True


_GRANTS = "Check {variable} and grants, then run 'outbox init'."
_RIGHT = "Run 'outbox doctor' as this role: it names the right that is missing and the statement that grants it."
_PRIMARY = "let {variable} lead to the primary (several hosts with target_session_attrs=read-write find it)"
_READ_ONLY = f"It was switched to read only: make it writable again and deliveries go on by themselves, or {_PRIMARY}."
_POOLER = (
    "A pooler mixes up the prepared statements of its clients: let it pool whole sessions, or let {variable} lead past "
    "it."
)
_ENCODING = (
    "An event has a character, or bytes that are none, in which the database's encoding and UTF-8 do not meet: correct "
    "or remove it, or move the outbox into a database with ENCODING 'UTF8'."
)
_LOCKED = (
    "Another session keeps what is needed locked: SELECT pid, usename, wait_event, query FROM pg_stat_activity WHERE "
    "pid IN (SELECT pid FROM pg_locks WHERE granted AND relation::regclass::text LIKE 'outbox.%') shows which; one "
    "with the wait_event SyncRep waits for a synchronous standby that is away."
)
_SETUP = "Set the server up as it says, then run 'outbox doctor'."
_LIMIT = "A limit of the server is in the way: raise it."
_DISK = "Its disk does not answer as it should: look into PostgreSQL's own log; what waits goes on by itself."
_DAMAGE = "Its files are damaged or cannot be read: look into PostgreSQL's own log, and repair or restore it."

_HIDDEN = Meaning(LedgerError, has_words=False)

#: By state or class of states; the longest that fits counts. What is in no line is `_HIDDEN`: something that only a
#: defect can cause, and whose words were not examined.
MEANINGS: dict[str, Meaning] = {
    # The connection broke, or something between closed it.
    "08": Meaning(TransientError),
    "0A": Meaning(ConfigurationError, "The server, or a pooler before it, does not offer what the outbox needs."),
    "0L": Meaning(ConfigurationError, _GRANTS),
    "0P": Meaning(ConfigurationError, _GRANTS),
    # Values: the words quote them.
    "22": _HIDDEN,
    "22021": Meaning(ConfigurationError, _ENCODING, has_words=False),
    "22P05": Meaning(ConfigurationError, _ENCODING, has_words=False),
    # A constraint of the schema: the first message names it, values stand in the DETAIL.
    "23": Meaning(ConstraintError, "Nothing was written."),
    "25": _HIDDEN,
    "25006": Meaning(TransientError, _READ_ONLY),
    # The statement before failed, or a pooler handed on a session in which one had: another transaction can do it.
    "25P02": Meaning(TransientError),
    "25P03": Meaning(TransientError),
    "25P04": Meaning(TransientError),
    "26": Meaning(ConfigurationError, _POOLER),
    "28": Meaning(ConfigurationError, _GRANTS),
    "3D": Meaning(ConfigurationError, _GRANTS),
    "3F": Meaning(ConfigurationError, _GRANTS),
    "40": Meaning(TransientError),
    "42": Meaning(ConfigurationError, _GRANTS),
    "42501": Meaning(ConfigurationError, _RIGHT),
    "42P05": Meaning(ConfigurationError, _POOLER),
    "44": Meaning(ConstraintError, "Nothing was written."),
    "53": Meaning(TransientError),
    # temp_file_limit and its like stay as they are however long one waits.
    "53400": Meaning(ConfigurationError, _LIMIT),
    "54": Meaning(ConfigurationError, _LIMIT),
    "55": Meaning(ConfigurationError, _SETUP),
    "55006": Meaning(TransientError),
    "55P03": Meaning(TransientError, _LOCKED),
    # Cancelled, out of time, shut down, starting.
    "57": Meaning(TransientError),
    "57P04": Meaning(ConfigurationError, _GRANTS),
    "58": Meaning(LedgerError, _DAMAGE),
    # A disk that does not answer, over a network for example, comes back.
    "58030": Meaning(TransientError, _DISK),
    "72": Meaning(TransientError),
    "F0": Meaning(ConfigurationError, _SETUP),
    # A trigger of the schema.
    "P0001": Meaning(ConstraintError, "Nothing was written."),
    "XX": _HIDDEN,
    "XX001": Meaning(LedgerError, _DAMAGE),
    "XX002": Meaning(LedgerError, _DAMAGE),
}


def state_of(error: BaseException | None) -> str:
    """Return the SQLSTATE of a driver's error, empty when it has none: psycopg2 calls it pgcode, others sqlstate."""
    found = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or ""
    return str(found).strip("\0")


def meaning_of(state: str) -> Meaning:
    """Return what *state* means, by its own line or that of its class."""
    return MEANINGS.get(state) or MEANINGS.get(state[:2], _HIDDEN)


def answered(where: str, state: str, *, name: str, said: str, variable: str = "OUTBOX_POSTGRES_URL") -> OutboxError:
    """Return the error for a server that answered with *state*: *name* is the condition's, *said* its first message."""
    meaning = meaning_of(state)
    verb = "cannot do this now" if meaning.kind is TransientError else "refuses this"
    words = f"{said.rstrip('.')} ({name}, SQLSTATE {state})" if meaning.has_words else f"{name}, SQLSTATE {state}"
    parts = [f"{where} {verb}: {words}.", meaning.next_step.format(variable=variable)]
    if not meaning.has_words:
        parts.append("The rest may quote events and is left out: PostgreSQL's own log has it.")
    return meaning.kind(" ".join(filter(None, parts)))


def standby(where: str, state: str, *, variable: str) -> TransientError:
    """Return the error for a standby, whatever it answered to what only a primary can do."""
    remedy = _PRIMARY.format(variable=variable)
    return TransientError(f"{where} is a standby, which only reads (SQLSTATE {state}): {remedy}.")
