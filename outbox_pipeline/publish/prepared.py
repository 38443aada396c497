"""Whether psycopg may prepare what publishing sends over a connection. Loaded only where psycopg is.

psycopg prepares what it has sent five times, as `_pg3_0`, `_pg3_1` and so on. Where a pooler hands each transaction to
any of its server sessions, that name may be there already or mean another client's statement. Without preparing, an
event takes a third longer, so it is given up only where it does harm.

Invariant: a statement of ours is prepared only where the process that runs it is the one that answered the login. The
application's settings and its own statements stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from psycopg import AsyncConnection, Connection
from psycopg.pq import TransactionStatus

from outbox_pipeline.publish.steps import Statement

#: Answered by the server's process, while psycopg knows the pid that the login gave it: a pooler's is its own.
QUESTION = Statement("SELECT CAST(pg_backend_pid() AS text)", {}, is_question=True)

#: As many statements go out before it is asked; a connection with fewer is not worth a round trip.
_STATEMENTS_BEFORE = 5

#: A question in a failed transaction would fail, and what follows may be the way out of it.
_ASKABLE = (TransactionStatus.IDLE, TransactionStatus.INTRANS)

AnyConnection = Connection[Any] | AsyncConnection[Any]


@dataclass
class _Known:
    statement_count: int = 0
    is_asked: bool = False
    is_direct: bool = False


_known: WeakKeyDictionary[AnyConnection, _Known] = WeakKeyDictionary()


def is_to_be_asked(connection: AnyConnection) -> bool:
    """Count one more statement over *connection*; tell whether QUESTION goes first, which it does once at most."""
    known = _of(connection)
    if known.is_asked or connection.prepare_threshold is None:
        return False
    known.statement_count += 1
    return known.statement_count > _STATEMENTS_BEFORE and connection.info.transaction_status in _ASKABLE


def learn(connection: AnyConnection, backend_pid: str | None) -> None:
    """Note the answer to QUESTION."""
    known = _of(connection)
    known.is_asked, known.is_direct = True, backend_pid == str(connection.info.backend_pid)


def is_direct(connection: AnyConnection) -> bool:
    """Tell whether PostgreSQL itself is known to answer at the other end."""
    return _of(connection).is_direct


def _of(connection: AnyConnection) -> _Known:
    known = _known.get(connection)
    if known is None:
        known = _known[connection] = _Known()
    return known


@contextmanager
def unprepared(connection: AnyConnection) -> Iterator[None]:
    """Let nothing be prepared during the block, for callers who cannot say so with a statement."""
    threshold = connection.prepare_threshold
    connection.prepare_threshold = None
    try:
        yield
    finally:
        connection.prepare_threshold = threshold
