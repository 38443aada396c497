"""What people do with events that validation refused: look at them, have them delivered after all, give them up, or
publish a corrected one in their place.

Invariant: every change here takes its locks in the ledger's one order (unclaimed, batch, quarantined_event) in a
statement each, so it waits for cuts and marks and neither loses nor doubles a position. An event's context is read only
by `show`, for the person who asked, and never logged.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, Engine

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.errors import QuarantineError, UsageError
from outbox_pipeline.events import EventRow
from outbox_pipeline.logs import log
from outbox_pipeline.postgres import quarantine as store
from outbox_pipeline.postgres.cut import lock_unclaimed
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.quarantine import LockedEvent
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.publish import insert_events
from outbox_pipeline.quarantined import Filter, QuarantinedEvent, QuarantineStatus
from outbox_pipeline.times import parse_time

_MAX_NAMED = 5
_LARGEST_NUMBER = 2**63 - 1

#: What the words of a filter are called in a run's config; a command line calls them otherwise.
_FIELDS = {name: name for name in ("event_type", "reason", "since", "until", "batch_id")} | {"id": "event_ids"}


@dataclass(frozen=True)
class Held:
    """How many events are held, for which reasons (an event may have several), and since when the oldest."""

    count: int
    by_reason: dict[str, int]
    oldest_at: datetime | None

    def summary(self) -> str:
        """Say it in one line."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.by_reason.items())
        return f"{self.count:,} held: {reasons}" if self.count else "nothing held"


@dataclass(frozen=True)
class Preview:
    """What a requeue or discard would change: these events and no others, however many join them meanwhile."""

    held: Held
    wanted: Filter


@dataclass(frozen=True)
class Content:
    """The event as the outbox holds it; `status` is the ledger's word for where it is now."""

    event_id: UUID
    position: int
    event_type: str
    environment: str
    event_date_time: str
    recorded_at: datetime
    published_by: str | None
    metadata_version: int
    context_bytes: int
    context: str
    status: str
    batch_id: UUID | None
    batch_status: str | None


@dataclass(frozen=True)
class Shown:
    """One event and all its stays in quarantine, first to last; `content` is None when its row is gone."""

    content: Content | None
    history: list[QuarantinedEvent]


@dataclass(frozen=True)
class Refusal:
    """Events that stay held, and why."""

    batch_id: UUID
    event_count: int
    why: str


@dataclass(frozen=True)
class Requeued:
    """How many events are unclaimed again, and which were refused."""

    count: int
    refused: tuple[Refusal, ...] = ()


def list_held(
    engine: Engine, wanted: Filter, *, status: QuarantineStatus = QuarantineStatus.HELD, limit: int | None = None
) -> list[QuarantinedEvent]:
    """Return matching events, latest first: those held, unless another *status* is asked for."""
    with ledger_transaction(engine) as connection:
        check_version(connection)
        return store.read_quarantined(connection, wanted, status=status, limit=limit)


def count_held(engine: Engine, wanted: Filter | None = None) -> Held:
    """Return how many events are held and why: all of them, or those that match."""
    with ledger_transaction(engine) as connection:
        check_version(connection)
        return _held(connection, wanted or Filter())


def show(engine: Engine, wanted: Filter) -> Shown:
    """Return the one event that *wanted* names, with its context and all its stays in quarantine.

    Raises QuarantineError when it never was in quarantine.
    """
    with ledger_transaction(engine) as connection:
        check_version(connection)
        history = store.read_history(connection, wanted)
        if not history:
            where = "'outbox trace' tells where it is" if wanted.event_ids else "'outbox quarantine list' shows numbers"
            raise QuarantineError(f"{_names(wanted)} has never been in quarantine: {where}.")
        event_id = history[0].event_id
        row = store.read_event(connection, event_id)
        history = store.read_history(connection, Filter(event_ids=frozenset({event_id})))
    return Shown(None if row is None else Content(**row), history)


def preview(engine: Engine, wanted: Filter) -> Preview:
    """Return what a requeue or discard of *wanted* would change. Changes nothing.

    Raises QuarantineError when nothing matches, or an event that is named is not held.
    """
    with ledger_transaction(engine) as connection:
        check_version(connection)
        events = store.read_quarantined(connection, wanted, status=QuarantineStatus.HELD)
        _require_held(connection, wanted, found=len(events))
        oldest_at = min((event.quarantined_at for event in events), default=None)
    reasons = Counter(reason.partition(":")[0] for event in events for reason in event.reasons)
    ids = frozenset(event.quarantine_id for event in events)
    return Preview(Held(len(events), dict(reasons.most_common()), oldest_at), Filter(quarantine_ids=ids))


def requeue(engine: Engine, wanted: Filter, *, lock_timeout_seconds: float = 5) -> Requeued:
    """Let held events be delivered by the next batch, which validates them anew.

    Refused and still held are events whose batch is being delivered again at this moment, and events whose row was
    deleted by hand. Raises QuarantineError when nothing matches, or an event that is named is not held.
    """
    with ledger_transaction(engine, lock_timeout_seconds=lock_timeout_seconds) as connection:
        check_version(connection)
        lock_unclaimed(connection)
        statuses = store.lock_batches(connection, wanted)
        locked = store.lock_held(connection, wanted, batch_ids=statuses)
        _require_held(connection, wanted, found=len(locked))
        ready = [event for event in locked if _obstacle(event, statuses) is None]
        count = store.requeue_events(connection, [event.quarantine_id for event in ready])
    log().info("events_requeued", count=count, refused=len(locked) - count)
    return Requeued(count, _refusals(locked, statuses))


def discard(engine: Engine, wanted: Filter, *, note: str, lock_timeout_seconds: float = 5) -> int:
    """Give held events up for good, keep *note* with each, and return how many.

    Raises QuarantineError without a note, when nothing matches, or when an event that is named is not held.
    """
    note = note.strip()
    if not note:
        raise QuarantineError("Say why these events are discarded: the note is kept with each of them.")
    with ledger_transaction(engine, lock_timeout_seconds=lock_timeout_seconds) as connection:
        check_version(connection)
        locked = store.lock_held(connection, wanted)
        _require_held(connection, wanted, found=len(locked))
        count = store.discard_events(connection, [event.quarantine_id for event in locked], note=note)
    log().info("events_discarded", count=count)
    return count


def replace(engine: Engine, wanted: Filter, corrected: EventRow, *, lock_timeout_seconds: float = 5) -> UUID:
    """Publish *corrected* in place of the one held event that *wanted* names, and return the corrected event's id.

    One transaction: the held event is replaced and names the new one, and the new one is pending; or neither. Raises
    QuarantineError when the event is not held, or when the outbox has an event with the new id already.
    """
    with ledger_transaction(engine, lock_timeout_seconds=lock_timeout_seconds) as connection:
        check_version(connection)
        locked = store.lock_held(connection, wanted)
        _require_held(connection, wanted, found=len(locked))
        if insert_events(connection, [corrected]).new_count != 1:
            raise QuarantineError(
                f"The outbox has an event {corrected.event_id} already: leave event_id out of the file, or give "
                "another one. Nothing was changed."
            )
        store.replace_event(connection, locked[0].quarantine_id, replaced_by=corrected.event_id)
    log().info("event_replaced", quarantine_id=locked[0].quarantine_id, replaced_by=str(corrected.event_id))
    return corrected.event_id


def parse_filter(
    ids: Sequence[str] = (),
    *,
    event_type: str | None = None,
    reason: str | None = None,
    since: str | None = None,
    until: str | None = None,
    batch_id: str | None = None,
    names: Mapping[str, str] = _FIELDS,
) -> Filter:
    """Read a filter from the words of a command line or a run's config; an empty word is wrong like any other.

    An id is an event's UUID or its number in quarantine; *names* are what the caller's words are called where they are
    given. Raises UsageError that says which word is wrong and does not quote it.
    """
    named = [
        (word, names["id"] if len(ids) == 1 else f"{names['id']} number {place}") for place, word in enumerate(ids, 1)
    ]
    numbers = {word for word in ids if word.isascii() and word.isdigit()}
    return Filter(
        event_ids=frozenset(_parse_uuid(word, name, "an event") for word, name in named if word not in numbers),
        quarantine_ids=frozenset(_parse_number(word, name) for word, name in named if word in numbers),
        event_type=None if event_type is None else _parse_word(event_type, names["event_type"], "event type"),
        reason=None if reason is None else _parse_word(reason, names["reason"], "reason"),
        since=None if since is None else parse_time(since, names["since"]),
        until=None if until is None else parse_time(until, names["until"]),
        batch_id=None if batch_id is None else _parse_uuid(batch_id, names["batch_id"], "a batch"),
    )


def _held(connection: Connection, wanted: Filter) -> Held:
    count, oldest_at = store.count_held(connection, wanted)
    return Held(count, store.count_reasons(connection, wanted) if count else {}, oldest_at)


def _require_held(connection: Connection, wanted: Filter, *, found: int) -> None:
    """Raise QuarantineError unless something matched, and everything that was named."""
    if not wanted.has_ids:
        if not found:
            raise QuarantineError("No held event matches: 'outbox quarantine list' shows what is held.")
        return
    if found == len(wanted.event_ids) + len(wanted.quarantine_ids):
        return
    history = store.read_history(connection, wanted)
    latest = {event.event_id: event for event in history}
    resolved = [event for event in latest.values() if event.status != QuarantineStatus.HELD]
    if resolved:
        event = resolved[0]
        raise QuarantineError(
            f"Event {event.event_id} is not held any more: it was {event.status} at "
            f"{event.resolved_at:%Y-%m-%d %H:%M:%S} UTC. Nothing was changed."
        )
    unknown = [str(name) for name in sorted(wanted.event_ids - latest.keys())]
    unknown += [str(number) for number in sorted(wanted.quarantine_ids - {event.quarantine_id for event in history})]
    if unknown:
        raise QuarantineError(f"Not in quarantine: {_some(unknown)}. Nothing was changed.")


def _obstacle(event: LockedEvent, statuses: dict[UUID, BatchStatus]) -> str | None:
    if not event.is_there:
        return "its row is gone from outbox.event: publish the event again"
    status = statuses[event.batch_id]
    if status != BatchStatus.PROCESSED:
        return f"its batch is being delivered again (it is {status}): requeue it once that has ended"
    return None


def _refusals(locked: Sequence[LockedEvent], statuses: dict[UUID, BatchStatus]) -> tuple[Refusal, ...]:
    counted = Counter((event.batch_id, _obstacle(event, statuses)) for event in locked)
    return tuple(Refusal(batch_id, count, why) for (batch_id, why), count in counted.items() if why is not None)


def _parse_uuid(word: str, name: str, what: str) -> UUID:
    try:
        return UUID(word.strip())
    except ValueError:
        raise UsageError(
            f"What is given as {name} is no id of {what}: 'outbox quarantine list --json' shows ids."
        ) from None


def _parse_word(word: str, name: str, what: str) -> str:
    if not word:
        raise UsageError(f"What is given as {name} is no {what}: it is empty.")
    return word


def _parse_number(word: str, name: str) -> int:
    digits = word.lstrip("0") or "0"
    # Python itself refuses to read a number of some thousand digits.
    if len(digits) > len(str(_LARGEST_NUMBER)) or int(digits) > _LARGEST_NUMBER:
        raise UsageError(f"What is given as {name} is no number in quarantine: 'outbox quarantine list' shows them.")
    return int(digits)


def _names(wanted: Filter) -> str:
    return _some([str(name) for name in (*wanted.event_ids, *sorted(wanted.quarantine_ids))])


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_MAX_NAMED])
    return shown if len(names) <= _MAX_NAMED else f"{shown} and {len(names) - _MAX_NAMED} more"
