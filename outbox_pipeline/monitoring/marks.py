"""Which batches were marked since the last look, each once.

A mark is visible from its commit on, which may come after that of a later mark. So each look goes back to the moment
before which, at the look before it, no open transaction could mark any more, and leaves out what was told. Invariant: a
batch is told once for each of its marks; one is missed only where more than `_LATE` others were marked between its mark
and its commit, or where PostgreSQL's clock was set back meanwhile.
"""

from collections import deque
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection

from outbox_pipeline.batches import MarkedBatch
from outbox_pipeline.postgres.marked import Look, marked_after, marked_between, read_look

#: Most batches of one look.
LIMIT = 100
#: Most batches that a look goes back by.
_LATE = 1_000
#: Longer than it takes from the reading of the clock in an UPDATE to the number of its transaction.
_MARGIN = timedelta(seconds=5)

_Key = tuple[datetime, UUID]


class Marks:
    """The marks from the first look on."""

    def __init__(self) -> None:
        """Begin before the first look."""
        self._looks: deque[Look] = deque()
        #: The latest mark that was told, or the moment of the first look.
        self._newest: datetime | None = None
        #: Before this moment nothing can be marked any more that was not there to see in the look before.
        self._since: datetime | None = None
        self._told: set[_Key] = set()

    def take(self, connection: Connection) -> list[MarkedBatch]:
        """Return up to `LIMIT` batches that are marked and were not returned before, in the order of their marks.

        The first call returns none: it is where the marks begin.
        """
        look = read_look(connection)
        settled = self._settled(look)
        if self._newest is None or self._since is None:
            self._newest, self._since = look.at, settled
            self._told = {_key(each) for each in marked_between(connection, settled, look.at, limit=_LATE)}
            return []
        late = marked_between(connection, self._since, self._newest, limit=_LATE)
        found = [each for each in late if _key(each) not in self._told][:LIMIT]
        if len(found) < LIMIT:
            found += marked_after(connection, self._newest, limit=LIMIT - len(found))
        self._newest = max([self._newest, *(each.processed_at for each in found)])
        if len(found) < LIMIT:
            self._since = settled
        self._told = {key for key in self._told if key[0] > self._since} | {_key(each) for each in found}
        return found

    def _settled(self, look: Look) -> datetime:
        """Return the moment before which nothing can be marked any more that a statement after *look* does not see."""
        if len(self._looks) > 1 and self._looks[-1].xmax == look.xmax:
            self._looks.pop()
        self._looks.append(look)
        # Who marks after a look has a number that was not given then: once all below it are over, it is settled.
        while len(self._looks) > 1 and self._looks[1].xmax <= look.xmin:
            self._looks.popleft()
        return self._looks[0].at - _MARGIN


def _key(batch: MarkedBatch) -> _Key:
    return batch.processed_at, batch.batch_id
