"""What is sent to write events, in which order, and what follows from each answer.

The order is told once, as generators that yield statements and are sent replies, so that sync and async sessions
walk the same steps. Nothing here imports a database library.

Three invariants. What the server takes apart is what was put together: a page holding a separator in any of its texts
is sent event by event instead; JSON allows no control character outside an escape, so only names and traces can. With
best effort a failure, whatever it is, is passed over only after the server has taken the transaction back to a
savepoint, which proves that connection and transaction are alive; everything else surfaces. Logs have ids and counts,
never what an event says.
"""

from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from itertools import chain
from threading import Lock
from typing import NamedTuple, TypeVar
from uuid import UUID

from outbox_pipeline.errors import NoTransactionError, OutboxError
from outbox_pipeline.events import EventRow
from outbox_pipeline.ids import EventId
from outbox_pipeline.logs import application_log
from outbox_pipeline.postgres.queries import query_text
from outbox_pipeline.published import Written

#: Bounds of one statement. PostgreSQL takes no message of 1 GB or more.
PAGE_ROWS = 1_000
PAGE_CHARACTERS = 8_000_000

#: As in insert_events.sql.
SEPARATOR = "\x1e"
NO_TRACE = "\x1d"

#: What a repeat is compared by.
_COMPARED = ("event_id", "event_type", "event_context", "metadata_version")

#: Ids in one log line.
_IDS_TOLD = 10

Outcome = TypeVar("Outcome")


class Options(NamedTuple):
    """How a call wants its events written."""

    is_required: bool = True
    allows_autocommit: bool = False


class Statement(NamedTuple):
    """A statement with `:name` parameters and their values, all texts; a question is answered by one text."""

    sql: str
    parameters: Mapping[str, str | None]
    is_question: bool = False


class Reply(NamedTuple):
    """What the server replied: how many rows were written, negative when the driver does not say, or a text."""

    row_count: int = -1
    text: str | None = None


class Driver(NamedTuple):
    """How statements go out over one open connection, and how a transaction is begun there, for a sentence."""

    execute: Callable[[Statement], Reply]
    is_autocommit: bool
    beginning: str = "begin a transaction"


class AsyncDriver(NamedTuple):
    """As Driver, on a connection that is awaited."""

    execute: Callable[[Statement], Awaitable[Reply]]
    is_autocommit: bool
    beginning: str = "begin a transaction"


Steps = Generator[Statement, Reply, Outcome]

SAVEPOINT = Statement("SAVEPOINT outbox_publish", {})
ROLLBACK = Statement("ROLLBACK TO SAVEPOINT outbox_publish", {})
RELEASE = Statement("RELEASE SAVEPOINT outbox_publish", {})


def write(driver: Driver, rows: Sequence[EventRow], options: Options) -> Written | None:
    """Write *rows* and return what they were, None when best effort gave them up.

    Without rows best effort asks nothing but whether the transaction is alive. Raises NoTransactionError on a
    connection in autocommit, before any statement.
    """
    steps = _steps(driver, rows, options)
    try:
        statement = next(steps)
        while True:
            try:
                reply = driver.execute(statement)
            except Exception as error:  # noqa: BLE001 - the steps decide
                statement = steps.throw(error)
            else:
                statement = steps.send(reply)
    except StopIteration as done:
        outcome: Written | None = done.value
        return outcome


async def write_async(driver: AsyncDriver, rows: Sequence[EventRow], options: Options) -> Written | None:
    """As `write`, awaiting each statement."""
    steps = _steps(driver, rows, options)
    try:
        statement = next(steps)
        while True:
            try:
                reply = await driver.execute(statement)
            except Exception as error:  # noqa: BLE001 - the steps decide
                statement = steps.throw(error)
            else:
                statement = steps.send(reply)
    except StopIteration as done:
        outcome: Written | None = done.value
        return outcome


def _steps(driver: Driver | AsyncDriver, rows: Sequence[EventRow], options: Options) -> Steps[Written | None]:
    if driver.is_autocommit and not options.allows_autocommit:
        raise NoTransactionError(
            "This connection is in autocommit, so events and business data would not share a transaction: "
            f"{driver.beginning}, or say allow_autocommit=True."
        )
    if options.is_required:
        return _insertion(rows)
    return _best_effort(rows, has_savepoint=not driver.is_autocommit)


def _insertion(rows: Sequence[EventRow]) -> Steps[Written | None]:
    new_count = 0
    differing: list[UUID] = []
    for page in pages(rows):
        count = (yield page.statement).row_count
        new_count += page.event_count if count < 0 else count
        if 0 <= count < page.event_count:
            differing += yield from _differing(page)
    return Written(new_count, tuple(differing))


def _differing(page: "Page") -> Steps[list[UUID]]:
    # Asked first, because a refusal would end the caller's transaction over a repeat.
    may_compare = (yield Statement(query_text("may_compare"), {}, is_question=True)).text
    if may_compare != "true":
        return []
    ids = (yield page.question).text or ""
    return [UUID(event_id) for event_id in ids.split()]


def _best_effort(rows: Sequence[EventRow], *, has_savepoint: bool) -> Steps[Written | None]:
    # A failing SAVEPOINT surfaces: the transaction had failed before, or the connection is gone.
    if has_savepoint:
        yield SAVEPOINT
    try:
        written = yield from _insertion(rows)
    except Exception as error:  # noqa: BLE001 - the server tells whether the transaction can go on
        if has_savepoint:
            yield from _back_to_savepoint(error)
        give_up(error, rows[0].event_type, len(rows))
        return None
    if has_savepoint:
        yield RELEASE
    return written


def _back_to_savepoint(error: Exception) -> Steps[None]:
    try:
        yield ROLLBACK
        yield RELEASE
    except Exception as failure:
        raise error from failure


class Page(NamedTuple):
    """The statement that writes some events in one round trip, and how many they are."""

    statement: Statement
    event_count: int

    @property
    def question(self) -> Statement:
        """Which of the events the outbox has with another type, version or context: their ids, parted by spaces."""
        name = "differing_event" if self.event_count == 1 else "differing_events"
        compared = {column: self.statement.parameters[column] for column in _COMPARED}
        return Statement(query_text(name), compared, is_question=True)


def pages(rows: Sequence[EventRow]) -> Iterator[Page]:
    """Yield the statements that write *rows* in their order."""
    if len(rows) == 1:
        return iter([_alone(rows[0])])
    return chain.from_iterable(map(_together, _cut(rows)))


def _cut(rows: Sequence[EventRow]) -> Iterator[list[EventRow]]:
    page: list[EventRow] = []
    characters = 0
    for row in rows:
        characters += len(row.event_context)
        if page and (len(page) == PAGE_ROWS or characters > PAGE_CHARACTERS):
            yield page
            page, characters = [], len(row.event_context)
        page.append(row)
    if page:
        yield page


def _together(rows: list[EventRow]) -> Iterator[Page]:
    if len(rows) > 1:
        columns = _joined(rows)
        if _is_separable(columns, rows):
            yield Page(Statement(query_text("insert_events"), columns), len(rows))
            return
    for row in rows:
        yield _alone(row)


def _alone(row: EventRow) -> Page:
    texts = {
        "event_id": row.event_id.hex,
        "event_type": row.event_type,
        "event_date_time": row.event_date_time.isoformat(),
        "environment": row.environment,
        "event_context": row.event_context,
        "metadata_version": str(row.metadata_version),
        "trace_context": row.trace_context,
    }
    return Page(Statement(query_text("insert_event"), texts), 1)


def _joined(rows: list[EventRow]) -> dict[str, str | None]:
    join = SEPARATOR.join
    return {
        "event_id": join([row.event_id.hex for row in rows]),
        "event_type": join([row.event_type for row in rows]),
        "event_date_time": join([row.event_date_time.isoformat() for row in rows]),
        "environment": join([row.environment for row in rows]),
        "event_context": join([row.event_context for row in rows]),
        "metadata_version": join([str(row.metadata_version) for row in rows]),
        "trace_context": join([NO_TRACE if row.trace_context is None else row.trace_context for row in rows]),
    }


def _is_separable(columns: dict[str, str | None], rows: list[EventRow]) -> bool:
    counts = {(text or "").count(SEPARATOR) for text in columns.values()}
    return counts == {len(rows) - 1} and all(row.trace_context != NO_TRACE for row in rows)


_lock = Lock()
_given_up_count = 0


def not_published_count() -> int:
    """Return how many events this process gave up because they were published with `required=False`."""
    return _given_up_count


def give_up(error: Exception, event_type: str | None, event_count: int) -> None:
    """Count *event_count* events as given up and log why.

    Of an error that is not ours only class and SQLSTATE are said: its words may quote the context.
    """
    global _given_up_count
    with _lock:
        _given_up_count += event_count
    said, sqlstate = _told(error)
    application_log().warning(
        "event_not_published", event_type=event_type, count=event_count, error=said, sqlstate=sqlstate
    )


def _told(error: Exception) -> tuple[str, str | None]:
    # Neither what an application's own error is nor what it holds may fail here.
    if issubclass(type(error), OutboxError):
        return str(error), None
    try:
        # SQLAlchemy has the driver's error in `orig`, Django as the cause.
        original = getattr(error, "orig", None)
        cause = original if isinstance(original, BaseException) else error
        return type(cause).__name__, getattr(cause, "sqlstate", None) or _sqlstate_of(cause.__cause__)
    except Exception:  # noqa: BLE001 - code of the error's
        return type(error).__name__, None


def _sqlstate_of(cause: BaseException | None) -> str | None:
    # psycopg2 calls it pgcode.
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)


def event_id_of(row: EventRow, written: Written | None) -> EventId | None:
    """Return the id of *row*, which says whether it is a repeat; None when it was given up."""
    if written is None:
        return None
    _log_repeats([row], written)
    return EventId(row.event_id, is_repeat=written.new_count == 0, differs=bool(written.differing))


def event_ids_of(rows: Sequence[EventRow], written: Written | None) -> list[UUID] | None:
    """Return the ids of *rows*, None when they were given up."""
    if written is None:
        return None
    _log_repeats(rows, written)
    return [row.event_id for row in rows]


def _log_repeats(rows: Sequence[EventRow], written: Written) -> None:
    same_count = len(rows) - written.new_count - len(written.differing)
    if same_count > 0:
        event_id = str(rows[0].event_id) if len(rows) == 1 else None
        application_log().info("event_repeated", event_id=event_id, event_type=rows[0].event_type, count=same_count)
    # A repeat that says something else is not stored, so the publisher is warned.
    if written.differing:
        ids = [str(event_id) for event_id in written.differing[:_IDS_TOLD]]
        application_log().warning("event_repeated", event_ids=ids, count=len(written.differing), differs=True)
