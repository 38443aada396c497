"""What is sent to write events, in which order, and what follows when the server refuses a statement.

The order is told once, as generators that yield statements and are sent row counts, so that sync and async sessions
walk the same steps. Nothing here knows a driver.

Invariant: with best effort a failure is passed over only after the server has taken the transaction back to the
savepoint, which proves that connection and transaction are alive. Everything else surfaces.
"""

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from outbox_pipeline.errors import NoTransactionError
from outbox_pipeline.events import EventRow
from outbox_pipeline.publish import failures
from outbox_pipeline.publish.pages import pages

Outcome = TypeVar("Outcome")

#: A statement with `:name` parameters and their values, all texts.
Step = tuple[str, Mapping[str, str | None]]
Steps = Generator[Step, int, Outcome]

SAVEPOINT: Step = ("SAVEPOINT outbox_publish", {})
ROLLBACK: Step = ("ROLLBACK TO SAVEPOINT outbox_publish", {})
RELEASE: Step = ("RELEASE SAVEPOINT outbox_publish", {})

Errors = tuple[type[Exception], ...]


class Manner(NamedTuple):
    """How a call wants its events written."""

    is_required: bool = True
    allows_autocommit: bool = False


class Wire(NamedTuple):
    """One open connection as publishing needs it.

    `execute` sends a step and returns how many rows it wrote, negative when the driver does not say; `errors` is what
    it raises when the server refuses.
    """

    execute: Callable[[Step], int]
    errors: Errors
    is_autocommit: bool


class AsyncWire(NamedTuple):
    """As Wire, on a connection that is awaited."""

    execute: Callable[[Step], Awaitable[int]]
    errors: Errors
    is_autocommit: bool


def write(wire: Wire, rows: Sequence[EventRow], manner: Manner) -> int | None:
    """Write *rows* and return how many were new, None when best effort gave them up.

    Raises NoTransactionError on a connection in autocommit, before any statement.
    """
    steps = _steps(wire, rows, manner)
    try:
        step = next(steps)
        while True:
            try:
                count = wire.execute(step)
            except wire.errors as error:
                step = steps.throw(error)
            else:
                step = steps.send(count)
    except StopIteration as done:
        outcome: int | None = done.value
        return outcome


async def write_async(wire: AsyncWire, rows: Sequence[EventRow], manner: Manner) -> int | None:
    """As `write`, awaiting each statement."""
    steps = _steps(wire, rows, manner)
    try:
        step = next(steps)
        while True:
            try:
                count = await wire.execute(step)
            except wire.errors as error:
                step = steps.throw(error)
            else:
                step = steps.send(count)
    except StopIteration as done:
        outcome: int | None = done.value
        return outcome


def _steps(wire: Wire | AsyncWire, rows: Sequence[EventRow], manner: Manner) -> Steps[int | None]:
    if wire.is_autocommit and not manner.allows_autocommit:
        raise NoTransactionError(
            "This connection is in autocommit, so events and business data would not share a transaction: "
            "begin a transaction, or say allow_autocommit=True."
        )
    if manner.is_required:
        return _insertion(rows)
    return _best_effort(rows, wire.errors, has_savepoint=not wire.is_autocommit)


def _insertion(rows: Sequence[EventRow]) -> Steps[int | None]:
    new_count = 0
    for page in pages(rows):
        written = yield page.step
        new_count += page.event_count if written < 0 else written
    return new_count


def _best_effort(rows: Sequence[EventRow], errors: Errors, *, has_savepoint: bool) -> Steps[int | None]:
    # A failing SAVEPOINT surfaces: the transaction had failed before, or the connection is gone.
    if has_savepoint:
        yield SAVEPOINT
    try:
        new_count = yield from _insertion(rows)
    except errors as error:
        if has_savepoint:
            yield from _back_to_savepoint(error, errors)
        failures.note(error, rows[0].event_type, len(rows))
        return None
    if has_savepoint:
        yield RELEASE
    return new_count


def _back_to_savepoint(error: Exception, errors: Errors) -> Steps[None]:
    try:
        yield ROLLBACK
        yield RELEASE
    except errors as failure:
        raise error from failure
