"""Bring the new table to what the log has, pass by pass: most of it while events are delivered, the rest at the end.

A pass looks at all batch ids of both tables, copies those that differ and compares what it copied over every column.
Invariant: a batch counts as copied only while the log shows it as it was compared. What a delivery, a repair or a
person has changed since is copied anew by the next pass, and what is gone from the log goes from the new table.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

from outbox_pipeline.clickhouse.log_move.rows import Shown, copy_rows, drop_rows, sums_of_rows, survey
from outbox_pipeline.clickhouse.reconcile import shown_proofs
from outbox_pipeline.operations.reconcile.compare import differs
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.reconcile import read_processed
from outbox_pipeline.stores import Stores

#: Batches and rows that one statement copies or compares.
_MAX_BATCHES = 200
_MAX_ROWS = 500_000

_Batches = dict[UUID, Shown]


@dataclass(frozen=True)
class Progress:
    """How far the copy is: rows that stand in the new table and were compared, of those in the log."""

    row_count: int
    total_rows: int
    passes: int


@dataclass
class Copying:
    """The new table, and which batches of it were compared, as the log showed them then.

    `row_count`: of the log, at the latest pass. `differing`: batches whose proof does not hold in the new table, nor in
    the log, which it equals.
    """

    stores: Stores
    name: str
    run: int
    columns: list[str]
    on_progress: Callable[[Progress], None]
    before_each: Callable[[], None]
    passes: int = 0
    row_count: int = 0
    differing: set[UUID] = field(default_factory=set)
    _compared: _Batches = field(default_factory=dict)
    _suspects: set[UUID] = field(default_factory=set)

    def make_pass(self, *, log: _Batches | None = None, until: float | None = None) -> bool:
        """Copy what differs; True when both tables are the same at the end.

        *log*: what a survey of the log has just shown. Stops between two statements where *until*, a moment of the
        monotonic clock, is past.
        """
        client = self.stores.client
        log = survey(client, client.table) if log is None else log
        new = survey(client, self.name)
        self.passes += 1
        gone = [batch_id for batch_id in new if batch_id not in log]
        for some in _in_chunks({batch_id: new[batch_id] for batch_id in gone}):
            drop_rows(client, self.name, some, self.run)
        self._compared = {batch_id: shown for batch_id, shown in self._compared.items() if log.get(batch_id) == shown}
        due = {batch_id: shown for batch_id, shown in log.items() if self._is_due(batch_id, shown, new)}
        self.row_count = total = sum(shown.row_count for shown in log.values())
        done = total - sum(shown.row_count for shown in due.values())
        self.on_progress(Progress(done, total, self.passes))
        is_whole = True
        for some in _in_chunks(due):
            if until is not None and time.monotonic() > until:
                return False
            self.before_each()
            is_whole = self._bring(some, new) and is_whole
            done += sum(shown.row_count for shown in some.values())
            self.on_progress(Progress(done, total, self.passes))
        return is_whole

    def _is_due(self, batch_id: UUID, shown: Shown, new: _Batches) -> bool:
        return batch_id not in self._compared or new.get(batch_id) != shown

    def _bring(self, batches: _Batches, new: _Batches) -> bool:
        client = self.stores.client
        wrong = {
            batch_id: shown
            for batch_id, shown in batches.items()
            if new.get(batch_id) != shown or batch_id in self._suspects
        }
        left = [batch_id for batch_id in wrong if batch_id in new]
        if left:
            drop_rows(client, self.name, left, self.run)
        if wrong:
            copy_rows(client, self.name, wrong, self.columns, self.run)
        return self._compare(batches)

    def _compare(self, batches: _Batches) -> bool:
        client = self.stores.client
        wanted = sums_of_rows(client, client.table, batches, self.columns)
        found = sums_of_rows(client, self.name, batches, self.columns)
        same = {id_: shown for id_, shown in batches.items() if id_ in wanted and wanted[id_] == found.get(id_)}
        self._suspects = (self._suspects - same.keys()) | (batches.keys() - same.keys())
        self._compared |= same
        self._prove(same)
        return len(same) == len(batches)

    def _prove(self, same: _Batches) -> None:
        with ledger_transaction(self.stores.engine) as connection:
            batches = read_processed(connection, list(same))
        astray = [
            batch.batch_id
            for batch in batches
            if same[batch.batch_id].first_position < batch.first_position
            or same[batch.batch_id].last_position > batch.last_position
        ]
        proofs = shown_proofs(self.stores.client.of_table(self.name), batches, everywhere=astray)
        wrong = {batch.batch_id for batch in batches if differs(batch, proofs)}
        self.differing = (self.differing - same.keys()) | wrong


def _in_chunks(batches: _Batches) -> Iterator[_Batches]:
    """Yield them in portions, neighbours in the log together."""
    chunk: _Batches = {}
    rows = 0
    for batch_id, shown in sorted(batches.items(), key=lambda each: each[1].first_position):
        if chunk and (len(chunk) >= _MAX_BATCHES or rows + shown.row_count > _MAX_ROWS):
            yield chunk
            chunk, rows = {}, 0
        chunk[batch_id] = shown
        rows += shown.row_count
    if chunk:
        yield chunk
