"""What is sent to write events, in which order, and what follows when the server refuses a statement.

The order is told once, as generators that yield statements and are sent replies, so that sync and async sessions
walk the same steps. Nothing here knows a driver.

Invariant: with best effort a failure is passed over only after the server has taken the transaction back to the
savepoint, which proves that connection and transaction are alive. Everything else surfaces.
"""

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import NamedTuple, TypeVar
from uuid import UUID

from outbox_pipeline.errors import NoTransactionError
from outbox_pipeline.events import EventRow
from outbox_pipeline.postgres.queries import query_text
from outbox_pipeline.publish import failures
from outbox_pipeline.publish.pages import Page, Step, pages
from outbox_pipeline.published import Written

__all__ = ["AsyncWire", "Manner", "Reply", "Step", "Wire", "write", "write_async"]

Outcome = TypeVar("Outcome")

SAVEPOINT = Step("SAVEPOINT outbox_publish", {})
ROLLBACK = Step("ROLLBACK TO SAVEPOINT outbox_publish", {})
RELEASE = Step("RELEASE SAVEPOINT outbox_publish", {})

Errors = tuple[type[Exception], ...]


class Manner(NamedTuple):
    """How a call wants its events written."""

    is_required: bool = True
    allows_autocommit: bool = False


class Reply(NamedTuple):
    """What the server replied: how many rows were written, negative when the driver does not say, or a text."""

    row_count: int = -1
    text: str | None = None


Steps = Generator[Step, Reply, Outcome]


class Wire(NamedTuple):
    """One open connection as publishing needs it; `errors` is what `execute` raises when the server refuses."""

    execute: Callable[[Step], Reply]
    errors: Errors
    is_autocommit: bool


class AsyncWire(NamedTuple):
    """As Wire, on a connection that is awaited."""

    execute: Callable[[Step], Awaitable[Reply]]
    errors: Errors
    is_autocommit: bool


def write(wire: Wire, rows: Sequence[EventRow], manner: Manner) -> Written | None:
    """Write *rows* and return what they were, None when best effort gave them up.

    Raises NoTransactionError on a connection in autocommit, before any statement.
    """
    steps = _steps(wire, rows, manner)
    try:
        step = next(steps)
        while True:
            try:
                reply = wire.execute(step)
            except wire.errors as error:
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as done:
        outcome: Written | None = done.value
        return outcome


async def write_async(wire: AsyncWire, rows: Sequence[EventRow], manner: Manner) -> Written | None:
    """As `write`, awaiting each statement."""
    steps = _steps(wire, rows, manner)
    try:
        step = next(steps)
        while True:
            try:
                reply = await wire.execute(step)
            except wire.errors as error:
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as done:
        outcome: Written | None = done.value
        return outcome


def _steps(wire: Wire | AsyncWire, rows: Sequence[EventRow], manner: Manner) -> Steps[Written | None]:
    if wire.is_autocommit and not manner.allows_autocommit:
        raise NoTransactionError(
            "This connection is in autocommit, so events and business data would not share a transaction: "
            "begin a transaction, or say allow_autocommit=True."
        )
    if manner.is_required:
        return _insertion(rows)
    return _best_effort(rows, wire.errors, has_savepoint=not wire.is_autocommit)


def _insertion(rows: Sequence[EventRow]) -> Steps[Written | None]:
    new_count = 0
    differing: list[UUID] = []
    for page in pages(rows):
        count = (yield page.step).row_count
        new_count += page.event_count if count < 0 else count
        if 0 <= count < page.event_count:
            differing += yield from _differing(page)
    return Written(new_count, tuple(differing))


def _differing(page: Page) -> Steps[list[UUID]]:
    # Asked first, because a refusal would end the caller's transaction over a repeat.
    may_compare = (yield Step(query_text("may_compare"), {}, is_question=True)).text
    if may_compare != "true":
        return []
    ids = (yield page.question).text or ""
    return [UUID(event_id) for event_id in ids.split()]


def _best_effort(rows: Sequence[EventRow], errors: Errors, *, has_savepoint: bool) -> Steps[Written | None]:
    # A failing SAVEPOINT surfaces: the transaction had failed before, or the connection is gone.
    if has_savepoint:
        yield SAVEPOINT
    try:
        written = yield from _insertion(rows)
    except errors as error:
        if has_savepoint:
            yield from _back_to_savepoint(error, errors)
        failures.note(error, rows[0].event_type, len(rows))
        return None
    if has_savepoint:
        yield RELEASE
    return written


def _back_to_savepoint(error: Exception, errors: Errors) -> Steps[None]:
    try:
        yield ROLLBACK
        yield RELEASE
    except errors as failure:
        raise error from failure
