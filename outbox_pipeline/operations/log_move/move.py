"""Move the log: begin or go on, copy, make the last pass alone, exchange the tables, tidy up.

Each run has a number, draws it first and gives the new table a name with it, so what an earlier run may still send
names a table that there is not. Where a move stands is read from the tables themselves: their keys tell which one is
the old log. Invariant: between the moment from which no attempt begins and the exchange nothing changes a row of the
log; a run that finds that moment on record (a process was killed in it) looks first which table has which name.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import Connection

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.load import seconds_of_insert
from outbox_pipeline.clickhouse.log_move import tables
from outbox_pipeline.clickhouse.log_move.rows import seconds_of_copy, survey
from outbox_pipeline.clickhouse.log_move.shape import columns_of, moved_engine, shape_of, shapes_from
from outbox_pipeline.counts import counted
from outbox_pipeline.errors import ConfigurationError, OutboxError, TransientError, sentence_of
from outbox_pipeline.logs import log
from outbox_pipeline.operations.log_move.copying import Copying, Progress
from outbox_pipeline.operations.log_move.days import move_days
from outbox_pipeline.operations.log_move.fencing import Fencing
from outbox_pipeline.operations.log_move.plan import read_log_shape, require_movable, require_no_parked, require_ready
from outbox_pipeline.postgres import log_move as ledger
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.processes import wait_until
from outbox_pipeline.stores import Stores

#: How long deliveries wait for a last pass at most, unless the caller says otherwise.
MAX_PAUSE_SECONDS = 20.0
#: How often a last pass is begun before the move gives up; what was copied stays.
_MAX_TRIES = 10
#: Passes before a last one that is likely to end in time; more of them gain nothing.
_MAX_PASSES = 5
#: Longest wait for statements of an earlier run that still work in ClickHouse.
_EARLIER_SECONDS = 600

#: Between two looks at what a last pass waits for.
_LOOK_SECONDS = 0.05
_OVERTAKEN = "Another 'outbox log move' has begun since: let that one go on."

Listener = Callable[[Progress], None]


@dataclass(frozen=True)
class Moved:
    """What a move did: the new table's rows, where the old table stands, for how long deliveries waited.

    `was_moved`: there was nothing to do. `differing`: batches whose rows were not what the ledger expects, before and
    after.
    """

    table: str
    was_moved: bool = False
    row_count: int = 0
    before: str | None = None
    differing: tuple[str, ...] = ()
    passes: int = 0
    tries: int = 0
    pause_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Blocked:
    """Why a last pass was left."""

    reason: str


def move_log(
    stores: Stores, *, max_pause_seconds: float = MAX_PAUSE_SECONDS, on_progress: Listener = lambda _: None
) -> Moved:
    """Move the log to a table with the current sorting key, or go on with a move that was begun; safe to repeat.

    Deliveries go on but for a last pass, of which none lasts longer than *max_pause_seconds*. Raises ConfigurationError
    when the log cannot be moved or another process moves it, TransientError when no last pass came to an end or a
    server does not answer: what was copied stays, and a repetition goes on.
    """
    started = time.monotonic()
    require_ready(stores)
    with _only_move(stores) as require_lock:
        run = _begin(stores)
        moved = Moved(stores.client.table, was_moved=True)
        if not read_log_shape(stores.client).has_key_of_today:
            move = _Move(stores, run, require_lock, on_progress, max_pause_seconds)
            moved, run = move.make(), move.run
        before = _tidy_up(stores, run)
        is_new = before is not None or not moved.was_moved
    return replace(moved, was_moved=not is_new, before=before, seconds=round(time.monotonic() - started, 3))


def abandon_move(stores: Stores) -> list[str]:
    """Drop the new table of a move that was not finished, and return what was dropped; the log stays as it is."""
    require_ready(stores)
    with _only_move(stores):
        _begin(stores)
        if read_log_shape(stores.client).has_key_of_today:
            raise ConfigurationError(
                f"Table {stores.client.table} has its new key already, so there is no unfinished move to give up; run "
                "'outbox log move' to end what is left of it."
            )
        found = shapes_from(stores.client, tables.prefix_of_moving(stores.client)).values()
        dropped = [shape.name for shape in found if shape.has_key_of_today]
        for name in dropped:
            tables.drop(stores.client, name)
    return dropped


def _pause_of(tries: int) -> float:
    """Return for how many seconds deliveries get on before the next last pass."""
    return float(min(2.0 ** (tries - 1), 30.0))


@contextmanager
def _only_move(stores: Stores) -> Iterator[Callable[[], None]]:
    """Be the only move for the length of a block; what is yielded raises when that is over too early."""
    with ledger_transaction(stores.engine, idle_seconds=0) as connection:
        if not ledger.take_move(connection):
            raise ConfigurationError(
                f"Another 'outbox log move' is at work on table {stores.client.table}: wait for it, or end it first."
            )
        yield partial(ledger.require_alive, connection)


def _begin(stores: Stores) -> int:
    """Draw the number of this run, shut out what earlier ones still send, and learn where the move stands."""
    client = stores.client
    with ledger_transaction(stores.engine) as connection:
        state = ledger.begin_run(connection, above=tables.highest_run(client))
    tables.take_over(client, state.run)
    if not wait_until(lambda: seconds_of_copy(client) is None, seconds=_EARLIER_SECONDS, pause=0.2):
        raise TransientError(
            f"A statement of an earlier 'outbox log move' still works in {client.where}: repeat this when it has ended."
        )
    if state.exchange_at is not None:
        # No exchange of an earlier run can come any more, so the names are final.
        _let_attempts_begin(stores, state.run)
    return state.run


def _moving_name(client: EventLogClient, run: int) -> str:
    return f"{tables.prefix_of_moving(client)}{run}"


def _let_attempts_begin(stores: Stores, run: int) -> None:
    with ledger_transaction(stores.engine) as connection:
        if not ledger.end_exchange(connection, run):
            raise ConfigurationError(_OVERTAKEN)


def _tidy_up(stores: Stores, run: int) -> str | None:
    """Give the old table its last name; move the days' table. Return that name, None where there is none."""
    client = stores.client
    move_days(client, run)
    if shape_of(client, _moving_name(client, run)) is None:
        return None
    name = f"{tables.prefix_of_before(client)}{run}"
    tables.rename(client, _moving_name(client, run), name)
    return name


class _Move:
    """One run of a move, from the new table to the exchange."""

    def __init__(
        self,
        stores: Stores,
        run: int,
        require_lock: Callable[[], None],
        on_progress: Listener,
        max_pause_seconds: float,
    ) -> None:
        """Make the new table where none was made."""
        self._stores, self.run, self._client = stores, run, stores.client
        self._require_lock = require_lock
        self._max_pause = max_pause_seconds
        self._name = _moving_name(stores.client, run)
        self._pause_seconds = 0.0
        shape = read_log_shape(self._client)
        require_movable(self._client, shape)
        require_no_parked(stores, survey(self._client, self._client.table))
        if shape_of(self._client, self._name) is None:
            tables.make_like(self._client, shape, self._name)
        self._require_alike()
        columns = columns_of(self._client, self._client.table)
        self._copying = Copying(stores, self._name, run, columns, on_progress, require_lock)
        self._fencing = Fencing(stores)

    def make(self) -> Moved:
        """Copy until the last pass is short, then exchange."""
        found = _Blocked("nothing was tried")
        for tries in range(1, _MAX_TRIES + 1):
            self._catch_up()
            self._fencing.raise_all(is_alone=False)
            blocked = self._finish()
            if blocked is None:
                return self._result(tries)
            found = blocked
            log().info("log_move_waits", reason=found.reason)
            # What held it up gets on meanwhile.
            time.sleep(_pause_of(tries))
        raise TransientError(
            f"The log was copied, but no last pass came to an end within {self._max_pause:.0f} s in {_MAX_TRIES} "
            f"tries: {found.reason}. Repeat 'outbox log move', which goes on from here, at a calmer time or with a "
            "longer --max-pause."
        )

    def _result(self, tries: int) -> Moved:
        return Moved(
            self._client.table,
            row_count=self._copying.row_count,
            differing=tuple(map(str, sorted(self._copying.differing))),
            passes=self._copying.passes,
            tries=tries,
            pause_seconds=round(self._pause_seconds, 3),
        )

    def _catch_up(self) -> None:
        for _ in range(_MAX_PASSES):
            started = time.monotonic()
            self._copying.make_pass()
            if time.monotonic() - started < self._max_pause / 4:
                return

    def _finish(self) -> _Blocked | None:
        """Make the last pass and exchange the tables, with no attempt at work; say why where that was not to be."""
        started, is_alone = time.monotonic(), False
        try:
            # It waits for ClickHouse between its statements.
            with ledger_transaction(self._stores.engine, idle_seconds=0) as connection:
                ledger.wait_alone(connection)
                is_alone = True
                blocked = self._last_pass(connection, started + self._max_pause)
                if blocked is None and not ledger.begin_exchange(connection, self.run):
                    raise ConfigurationError(_OVERTAKEN)
        except TransientError as error:
            if is_alone:
                raise
            return _Blocked(sentence_of(error))
        if blocked is None:
            self._exchange()
        self._pause_seconds = time.monotonic() - started
        return blocked

    def _last_pass(self, connection: Connection, until: float) -> _Blocked | None:
        client = self._client
        held = ledger.held_batches(connection)
        if held and not wait_until(
            lambda: not ledger.held_batches(connection), seconds=self._max_pause / 2, pause=_LOOK_SECONDS
        ):
            return _Blocked(
                f"{counted(len(held), 'batch', 'batches')} were still being delivered, {held[0]} among them"
            )
        self._fencing.raise_all(is_alone=True)
        if not wait_until(
            lambda: seconds_of_insert(client) is None, seconds=until - time.monotonic(), pause=_LOOK_SECONDS
        ):
            return _Blocked("an insert of an attempt that has ended still runs in ClickHouse")
        rows = survey(client, client.table)
        opened = [each for each in ledger.read_open(connection) if each.batch_id in rows]
        if opened:
            return _Blocked(f"batch {opened[0].batch_id} is {opened[0].status} and has rows in the log")
        if not self._copying.make_pass(log=rows, until=until):
            return _Blocked("too much was left to copy")
        self._require_alike()
        self._require_lock()
        return None

    def _require_alike(self) -> None:
        """Raise ConfigurationError where one of the tables was altered since the other was made."""
        log, new = read_log_shape(self._client), shape_of(self._client, self._name)
        if new is None or (new.body, new.engine) != (log.body, moved_engine(log)):
            raise ConfigurationError(
                f"Table {log.name} was altered since its new table {self._name} was made: 'outbox log move --abandon', "
                "then 'outbox log move', which begins anew."
            )

    def _exchange(self) -> None:
        try:
            tables.exchange(self._client, self._name)
        except OutboxError as error:
            self._settle(error)
        else:
            _let_attempts_begin(self._stores, self.run)
        log().info("log_moved", table=self._client.table, run=self.run)

    def _settle(self, error: OutboxError) -> None:
        """Find out whether the tables were exchanged, as the next run would, and raise *error* when they were not."""
        try:
            self.run = _begin(self._stores)
        except OutboxError:
            raise TransientError(
                f"The tables were being exchanged when this happened: {sentence_of(error)} Nothing is delivered until "
                "it is known which one is the log: run 'outbox log move' again now, which goes on."
            ) from None
        if not read_log_shape(self._client).has_key_of_today:
            raise error
