"""Four questions about a running pipeline, each answered with numbers and with what to do.

Is anything undelivered for too long, or parked, does an open transaction hold events back, and is the ledger sound?
Everything is read in one transaction that changes nothing. Invariant: an answer names sessions, batches and counts,
and never shows an event or the text of another session's statement: of it only its command and table are read.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Engine

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.counts import counted
from outbox_pipeline.monitoring.check import duration
from outbox_pipeline.monitoring.status import Status
from outbox_pipeline.postgres.conditions import LedgerConditions, ledger_problem, read_conditions
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.overview import read_gap_holders, read_ledger_breaches, read_overview
from outbox_pipeline.postgres.quoting import quoted_text
from outbox_pipeline.postgres.schema import check_version

#: Pending events are counted up to here; more would make a look of every half minute expensive in a backlog.
PENDING_LIMIT = 100_000

_HOLDERS_SHOWN = 20


@dataclass(frozen=True)
class GapHolder:
    """A transaction that keeps gaps open; `gid` is the name of a prepared one, which has no session any more.

    `statement` is the command and table of what it ran last. What this role may not see is None.
    """

    holder: str
    pid: int | None
    gid: str | None
    user_name: str | None
    application: str | None
    client: str | None
    state: str | None
    statement: str | None
    gap_count: int
    age_seconds: float

    def described(self) -> str:
        """Name it so that a person can find it."""
        name = f"pid {self.pid}" if self.pid is not None else f"prepared transaction {self.gid or self.holder}"
        told = [f"user {self.user_name or 'not shown'}"]
        told += [f"application {self.application}"] if self.application else []
        told += [f"from {self.client}"] if self.client else []
        told += [self.state] if self.state else []
        told += [f"last {self.statement}"] if self.statement else []
        return f"{name} ({', '.join(told)})"


@dataclass(frozen=True)
class Breach:
    """A rule of the ledger that is broken, how often, and one batch, position or name as an example."""

    rule: str
    breach_count: int
    example: str


@dataclass(frozen=True)
class Health:
    """What one look has found."""

    status: Status
    gap_holders: tuple[GapHolder, ...]
    breaches: tuple[Breach, ...]
    conditions: LedgerConditions


@dataclass(frozen=True)
class Answer:
    """Whether all is well, one sentence or two that say what is wrong and what to do, and the numbers behind it.

    `cause` changes when a person should look again: another session, another rule, not merely another second.
    """

    is_well: bool
    said: str
    cause: str = ""
    numbers: dict[str, int | float] = field(default_factory=dict)
    rows: list[dict[str, int | float | str]] = field(default_factory=list)


def read_health(engine: Engine) -> Health:
    """Look once. Raises what `ledger_transaction` and `check_version` raise."""
    with ledger_transaction(engine) as connection:
        check_version(connection)
        return Health(
            Status(**read_overview(connection, limit=PENDING_LIMIT)),
            tuple(GapHolder(**row) for row in read_gap_holders(connection)),
            tuple(Breach(**row) for row in read_ledger_breaches(connection)),
            read_conditions(connection),
        )


def judge_lag(health: Health, *, limit_seconds: float) -> Answer:
    """Tell whether the oldest undelivered event is younger than the limit, and where the undelivered ones are."""
    status = health.status
    numbers: dict[str, int | float] = {
        "lag_seconds": round(status.lag_seconds, 3),
        "limit_seconds": limit_seconds,
        "recorded_in_the_future": status.future,
        "pending": status.pending,
        "in_flight": status.in_flight,
        "parked": status.parked,
    }
    if status.lag_seconds <= limit_seconds:
        return Answer(True, f"Nothing has been undelivered for longer than {duration(limit_seconds)}.", "", numbers)
    limit = "" if status.is_ahead else f", more than {duration(limit_seconds)}"
    said = (
        f"{lag_sentence(status)}{limit}: {_at_least(status)} pending, {status.in_flight:,} in flight, "
        f"{status.parked:,} parked. {_next_step(status)}"
    )
    return Answer(False, said, _cause_of_lag(status), numbers)


def lag_sentence(status: Status) -> str:
    """Say what the lag is, without a stop: an age, or how far ahead something was recorded."""
    if status.is_ahead:
        return (
            f"{counted(status.future, 'undelivered event was', 'undelivered events were')} recorded in the future, "
            f"up to {duration(status.lag_seconds)} ahead of PostgreSQL's clock, which was ahead or is behind now"
        )
    return f"The oldest undelivered event is {duration(status.lag_seconds)} old"


def judge_parked(health: Health) -> Answer:
    """Tell whether batches have used up their attempts and wait for a person."""
    status = health.status
    count = status.open_batches.get(BatchStatus.PARKED, 0)
    numbers: dict[str, int | float] = {"parked_batches": count, "parked_events": status.parked}
    if not count:
        return Answer(True, "No batch waits for a person.", "", numbers)
    said = (
        f"{counted(count, 'batch is', 'batches are')} parked with {counted(status.parked, 'event')}, not tried again "
        f"by themselves. {_next_step(status)}"
    )
    return Answer(False, said, str(count), numbers)


def judge_gaps(health: Health, *, limit_seconds: float) -> Answer:
    """Tell whether a transaction has kept a gap open for longer than the limit, and who it is."""
    old = [holder for holder in health.gap_holders if holder.age_seconds > limit_seconds]
    numbers: dict[str, int | float] = {
        "gaps": health.status.gaps,
        "oldest_seconds": round(max((holder.age_seconds for holder in health.gap_holders), default=0.0), 1),
        "limit_seconds": limit_seconds,
    }
    if not old:
        said = f"No transaction has held events back for longer than {duration(limit_seconds)}."
        return Answer(True, said, "", numbers)
    first, more = old[0], f" and {len(old) - 1} more" if len(old) > 1 else ""
    said = (
        f"A transaction has been open for {duration(first.age_seconds)} after publishing or trying to: "
        f"{first.described()}{more}. Its own events arrive when it commits; all others are delivered. {_ending(first)}"
    )
    rows = [_row(holder) for holder in old[:_HOLDERS_SHOWN]]
    return Answer(False, said, " ".join(sorted(holder.holder for holder in old)), numbers, rows)


def judge_ledger(health: Health) -> Answer:
    """Tell whether every position is in exactly one place as far as the ledger alone can show it."""
    condition = ledger_problem(health.conditions)
    numbers: dict[str, int | float] = {"broken_rules": len(health.breaches) + (condition is not None)}
    if condition is None and not health.breaches:
        return Answer(True, "Every position is in exactly one place, and counts add up.", "", numbers)
    told = [condition] if condition is not None else []
    told += [_sentence_of(breach, health.conditions) for breach in health.breaches]
    rows: list[dict[str, int | float | str]] = [
        {"rule": breach.rule, "times": breach.breach_count, "example": breach.example} for breach in health.breaches
    ]
    cause = " ".join(["conditions"] * (condition is not None) + [breach.rule for breach in health.breaches])
    return Answer(False, " ".join(told), cause, numbers, rows)


def _next_step(status: Status) -> str:
    error = f" Last error: {status.last_error}" if status.last_error else ""
    if status.parked:
        return f"Fix what parked them, then run resume_parked_batches.{error}"
    if error:
        return f"Batches are tried again by themselves once the cause is gone.{error}"
    if status.in_flight:
        return "Look at the Runs page whether runs wait in the queue; 'outbox doctor' says why."
    return "Look at the latest ticks of outbox_sensor: it is stopped, or its skip reason says why nothing is cut."


def _cause_of_lag(status: Status) -> str:
    return " ".join(
        name
        for name, is_so in (
            ("parked", status.parked > 0),
            ("failing", status.last_error is not None),
            ("future", status.is_ahead),
            ("in_flight", status.in_flight > 0),
            ("pending", status.pending > 0),
        )
        if is_so
    )


def _ending(holder: GapHolder) -> str:
    if holder.pid is None:
        if holder.gid is None:
            return "COMMIT PREPARED or ROLLBACK PREPARED with its gid, which is in pg_prepared_xacts, ends it."
        return f"COMMIT PREPARED or ROLLBACK PREPARED {quoted_text(holder.gid)} ends it."
    return (
        f"What it runs is in pg_stat_activity under pid {holder.pid}; "
        f"pg_terminate_backend({holder.pid}) rolls it back, its business data included."
    )


def _row(holder: GapHolder) -> dict[str, int | float | str]:
    return {
        "session": f"pid {holder.pid}" if holder.pid is not None else f"gid {holder.gid}",
        "transaction": holder.holder,
        "open_seconds": round(holder.age_seconds, 1),
        "user": holder.user_name or "",
        "application": holder.application or "",
        "client": holder.client or "",
        "state": holder.state or "",
        "last_statement": holder.statement or "",
        "gaps": holder.gap_count,
    }


_Sentence = Callable[[Breach, LedgerConditions], str]

#: What each rule of `ledger_breaches.sql` means when it is broken, and what to do.
_RULES: dict[str, _Sentence] = {
    "pending_and_in_a_batch": lambda breach, _: (
        f"{counted(breach.breach_count, 'stretch of positions is', 'stretches of positions are')} pending and in a "
        f"batch at once (batch {breach.example}): "
        "nothing is doubled, the next cut takes them out of the pending ones."
    ),
    "unclaimed_and_in_a_gap": lambda breach, _: (
        f"{counted(breach.breach_count, 'gap is', 'gaps are')} unclaimed too (gap {breach.example}): somebody changed "
        "them by hand; nothing is doubled, and it is over when the gap's transactions have ended."
    ),
    "new_events_unseen": lambda _, conditions: (
        "outbox.unclaimed has an upper end, so new events are never delivered: add "
        f"int8multirange(int8range({conditions.last_known + 1}, NULL)) to its positions."
    ),
    "counts_differ": lambda breach, _: (
        f"{counted(breach.breach_count, 'batch counts', 'batches count')} another number of events than there are "
        f"(batch {breach.example}): somebody changed outbox.batch by hand. Find out what, and prove the batch's day by "
        "materializing its partition."
    ),
    "refused_events_missing": lambda breach, _: (
        f"{counted(breach.breach_count, 'batch', 'batches')} refused other events than quarantine has (batch "
        f"{breach.example}): "
        "somebody changed outbox.quarantined_event by hand. 'outbox trace' tells where an event is."
    ),
    "refused_and_delivered": lambda breach, _: (
        f"{counted(breach.breach_count, 'event is', 'events are')} in quarantine and also pending or in a batch "
        f"(position {breach.example}): "
        "somebody changed the ledger by hand. Set their status in outbox.quarantined_event to requeued."
    ),
    "guard_missing": lambda breach, _: (
        f"{counted(breach.breach_count, 'guard of the outbox is', 'guards of the outbox are')} switched off or dropped "
        f"({breach.example}): enable again with ALTER TABLE … ENABLE TRIGGER, or take again from the migration "
        "0001_outbox.sql."
    ),
}


def _sentence_of(breach: Breach, conditions: LedgerConditions) -> str:
    return _RULES[breach.rule](breach, conditions)


def _at_least(status: Status) -> str:
    return f"at least {status.pending:,}" if status.pending_is_at_least else f"{status.pending:,}"
