"""Which rows of the event log are a batch's own: the one condition that proofs and deletes share.

Invariant: under the id of an adopted batch there may be rows of events that this outbox does not have; they are neither
counted for the batch nor touched on its behalf, and no more are those of another source. Any other row under a batch's
id is its own, wherever it stands.
"""

from collections.abc import Iterator
from typing import Any, Protocol
from uuid import UUID

from outbox_pipeline.batches import LAST_POSITION

#: Stretches of foreign positions named in one statement, which compares each row with all of them.
MAX_FOREIGN_STRETCHES = 500

#: The condition; its parameters come from `windows_of_batch`.
ROWS_OF_BATCH = """
source = {source:String} AND batch_id = {batch_id:UUID}
AND position BETWEEN {first_position:UInt64} AND {last_position:UInt64}
AND NOT arrayExists(
    (since, until) -> position >= since AND position < until,
    {foreign_since:Array(UInt64)}, {foreign_until:Array(UInt64)}
)
""".strip()


class OfBatch(Protocol):
    """What tells a batch's own rows from all others."""

    @property
    def batch_id(self) -> UUID:
        """The batch."""

    @property
    def foreign_positions(self) -> tuple[tuple[int, int], ...]:
        """Half-open stretches of positions that are not its own, in order."""


def windows_of_batch(batch: OfBatch, first: int = 0, last: int = LAST_POSITION) -> Iterator[dict[str, Any]]:
    """Yield parameters of `ROWS_OF_BATCH` that cover each own row between two positions once; nearly always one set."""
    foreign = tuple(stretch for stretch in batch.foreign_positions if stretch[0] <= last and stretch[1] > first)
    while len(foreign) > MAX_FOREIGN_STRETCHES:
        here, foreign = foreign[:MAX_FOREIGN_STRETCHES], foreign[MAX_FOREIGN_STRETCHES:]
        end = here[-1][1]
        yield _window(batch, (first, end - 1), here)
        first = end
    yield _window(batch, (first, last), foreign)


def _window(batch: OfBatch, bounds: tuple[int, int], foreign: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    return {
        "batch_id": str(batch.batch_id),
        "first_position": bounds[0],
        "last_position": bounds[1],
        "foreign_since": [since for since, _ in foreign],
        "foreign_until": [until for _, until in foreign],
    }
