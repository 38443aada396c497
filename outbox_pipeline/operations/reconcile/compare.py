"""Compare a window of days: the ledger's proofs with what ClickHouse shows, and each event with the sets of positions.

Invariant: it writes `proved_at` of batches found whole, and puts their numbers into the witness again where ClickHouse
has lost them; nothing else. What looks different is read from the ledger again and asked once more before it counts,
because deliveries and replays go on meanwhile.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import reduce
from uuid import UUID

from outbox_pipeline.batches import Batch, BatchStatus, Proof
from outbox_pipeline.clickhouse.batch_contents import shown_batches
from outbox_pipeline.clickhouse.reconcile import shown_proofs, unknown_rows
from outbox_pipeline.days import ALL_DAYS, Window
from outbox_pipeline.operations.reconcile.by_type import compare_types, late_events
from outbox_pipeline.operations.reconcile.copies import Copies, find_copies, removal
from outbox_pipeline.operations.reconcile.examine import examine
from outbox_pipeline.operations.reconcile.findings import (
    DayTotals,
    Difference,
    LateEvents,
    Reconciled,
    TypeTotals,
    UnknownBatch,
    checksum,
)
from outbox_pipeline.operations.reconcile.untracked import find_untracked
from outbox_pipeline.postgres import reconcile as ledger
from outbox_pipeline.postgres.conditions import require_own_cluster
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.rechecks import note_proved
from outbox_pipeline.relay.loop import require_ready
from outbox_pipeline.relay.witness import put_on_record
from outbox_pipeline.stores import Stores

#: Batches and rows compared by one query of ClickHouse.
_MAX_BATCHES = 200
_MAX_ROWS = 5_000_000

#: Differing batches whose rows are counted position by position; of the others only the number of rows is known.
MAX_EXAMINED = 100

#: Unknown batches that are reported; there may be more.
MAX_UNKNOWN = 100

#: What no rows add up to.
NOTHING = Proof.of_nothing()


@dataclass
class _Findings:
    """What has been found so far."""

    differences: list[Difference] = field(default_factory=list)
    whole: list[tuple[UUID, int]] = field(default_factory=list)
    expected: dict[date, Proof] = field(default_factory=dict)
    found: dict[date, Proof] = field(default_factory=dict)
    batches: Counter[date] = field(default_factory=Counter)
    late: list[LateEvents] = field(default_factory=list)
    types: Counter[tuple[date, str, str]] = field(default_factory=Counter)


def reconcile(stores: Stores, window: Window = ALL_DAYS, *, by_type: bool = False) -> Reconciled:
    """Compare both sides over the days of *window*.

    With *by_type* also the events by type, which reads all events of the window in PostgreSQL. Rows of unknown batches
    are looked for in the whole table, whatever the window. Batches found whole are noted as proved now, and their
    numbers are put into the witness again where ClickHouse has lost them.

    Raises LedgerError when the ledger belongs to another cluster, WitnessError when ClickHouse has deliveries that it
    does not know: what the old instance delivered is unknown here, and `outbox adopt` learns it.
    """
    started = time.monotonic()
    require_ready(stores)
    unknown, astray = _sweep(stores)
    with ledger_transaction(stores.engine) as connection:
        require_own_cluster(connection)
        processed = ledger.processed_batches(connection, window.first_day, window.last_day)
    findings = _Findings()
    for batch_ids in _chunks(processed):
        _compare(stores, batch_ids, astray=astray, findings=findings)
        if by_type:
            _compare_types(stores, batch_ids, findings)
    put_on_record(stores, {batch_id for batch_id, _ in findings.whole})
    untracked = tuple(item for item in find_untracked(stores, window) if item.day in window)
    result = Reconciled(
        window,
        differences=tuple(findings.differences),
        untracked=untracked,
        late=tuple(findings.late),
        unknown=tuple(_described(stores, unknown[:MAX_UNKNOWN])),
        unknown_batches=len(unknown),
        types=_type_totals(findings),
        whole=tuple(findings.whole),
    )
    return replace(result, days=_days(stores, result, findings), seconds=time.monotonic() - started)


def _compare(stores: Stores, batch_ids: list[UUID], *, astray: set[UUID], findings: _Findings) -> None:
    batches = {batch.batch_id: batch for batch in _read(stores, batch_ids)}
    proofs = shown_proofs(stores.client, list(batches.values()), everywhere=astray)
    suspects = [batch_id for batch_id, batch in batches.items() if differs(batch, proofs)]
    if suspects:
        fresh = {batch.batch_id: batch for batch in _read(stores, suspects)}
        again = shown_proofs(stores.client, list(fresh.values()), everywhere=astray)
        batches = {batch_id: batch for batch_id, batch in batches.items() if batch_id not in suspects} | fresh
        proofs = {batch_id: shown for batch_id, shown in proofs.items() if batch_id not in suspects} | again
    for batch in batches.values():
        _note(stores, batch, proofs.get(batch.batch_id, {}), findings)
    findings.late += late_events(stores, [batch for batch in batches.values() if batch.pruned_at is not None])
    with ledger_transaction(stores.engine) as connection:
        note_proved(connection, [batch_id for batch_id in batches if not differs(batches[batch_id], proofs)])


def _note(stores: Stores, batch: Batch, shown: dict[int, Proof], findings: _Findings) -> None:
    assert batch.proof is not None
    day, found = batch.recorded_on, reduce(Proof.plus, shown.values(), NOTHING)
    findings.batches[day] += batch.status != BatchStatus.SPLIT
    findings.expected[day] = findings.expected.get(day, NOTHING).plus(batch.proof)
    findings.found[day] = findings.found.get(day, NOTHING).plus(found.as_of(batch.proof.version))
    if not differs(batch, {batch.batch_id: shown}):
        if batch.status != BatchStatus.SPLIT:
            findings.whole.append((batch.batch_id, found.row_count))
        return
    difference = Difference(batch, expected=batch.proof.row_count, found=found.row_count)
    if len(findings.differences) < MAX_EXAMINED:
        difference = examine(stores, difference, found)
        if difference.is_split:
            difference = replace(difference, remedy=_remedy_of_split(stores, batch.batch_id))
    findings.differences.append(difference)


def differs(batch: Batch, proofs: dict[UUID, dict[int, Proof]]) -> bool:
    """Tell whether what the rows of a processed batch add up to, by `shown_proofs`, is not its proof."""
    shown = {generation: proof for generation, proof in proofs.get(batch.batch_id, {}).items() if proof.row_count}
    assert batch.proof is not None
    batch.proof.require_known()
    if not batch.accepted_count or shown.keys() != {batch.generation}:
        return bool(batch.accepted_count or shown)
    return bool(batch.proof.differences(shown[batch.generation]))


def _compare_types(stores: Stores, batch_ids: list[UUID], findings: _Findings) -> None:
    known = {difference.batch.batch_id for difference in findings.differences}
    for batch, held, shown in compare_types(stores, _read(stores, batch_ids), findings.late):
        for side, counts in (("expected", held), ("found", shown)):
            for event_type, (count, _) in counts.items():
                findings.types[batch.recorded_on, event_type, side] += count
        if held != shown and batch.batch_id not in known:
            findings.whole = [item for item in findings.whole if item[0] != batch.batch_id]
            count = batch.accepted_count or 0
            findings.differences.append(
                Difference(batch, expected=count, found=count, is_examined=True, altered="event types")
            )


def _type_totals(findings: _Findings) -> tuple[TypeTotals, ...]:
    names = sorted({(day, event_type) for day, event_type, _ in findings.types})
    return tuple(
        TypeTotals(
            day, event_type, findings.types[day, event_type, "expected"], findings.types[day, event_type, "found"]
        )
        for day, event_type in names
    )


def _sweep(stores: Stores) -> tuple[list[UUID], set[UUID]]:
    """Return the batches that the ledger does not know, and those with rows beyond the positions they were cut with."""
    unknown: list[UUID] = []
    astray: set[UUID] = set()
    for block in shown_batches(stores.client):
        # Read after ClickHouse has answered: a batch is in the ledger before its first row is sent.
        with ledger_transaction(stores.engine) as connection:
            known = ledger.known_bounds(connection, [shown.batch_id for shown in block])
        for shown in block:
            if shown.batch_id not in known:
                unknown.append(shown.batch_id)
                continue
            first, last, is_adopted = known[shown.batch_id]
            if not is_adopted and (shown.first_position < first or shown.last_position > last):
                astray.add(shown.batch_id)
    return unknown, astray


def _described(stores: Stores, batch_ids: Sequence[UUID]) -> Iterator[UnknownBatch]:
    if not batch_ids:
        return
    found = find_copies(stores, batch_ids)
    for rows in unknown_rows(stores.client, batch_ids):
        copies = found.get(rows.batch_id, Copies())
        yield UnknownBatch(
            **vars(rows),
            copies=copies.delivered,
            elsewhere=copies.sentence,
            removal=removal(stores.client, rows.batch_id, copies) if copies.batches else "",
        )


def _remedy_of_split(stores: Stores, batch_id: UUID) -> str:
    copies = find_copies(stores, [batch_id]).get(batch_id, Copies())
    said = f"the batch was split, so its events come in other batches, and {copies.sentence}"
    if not copies.batches:
        return f"{said}: leave these rows, and compare again when nothing is on its way"
    return f"{said}; this removes rows with such a copy alone: {removal(stores.client, batch_id, copies)}"


def _days(stores: Stores, result: Reconciled, findings: _Findings) -> tuple[DayTotals, ...]:
    window = result.window
    with ledger_transaction(stores.engine) as connection:
        ledger_days = {day.day: day for day in ledger.read_day_counts(connection, window.first_day, window.last_day)}
    differing = Counter(difference.day for difference in result.differences)
    beyond = Counter(difference.day for difference in result.differences if difference.is_pruned)
    untracked = Counter({item.day: item.event_count for item in result.untracked})
    late = _sum((item.day, item.event_count) for item in result.late)
    unknown = _sum((rows.day, rows.row_count) for rows in result.unknown if rows.day in window)
    totals = []
    for day in sorted({*ledger_days, *findings.batches, *untracked, *unknown}):
        there, expected = ledger_days.get(day), findings.expected.get(day, NOTHING)
        found = findings.found.get(day, NOTHING)
        totals.append(
            DayTotals(
                day,
                batches=findings.batches[day],
                differing=differing[day],
                differing_pruned=beyond[day],
                expected_rows=expected.row_count,
                found_rows=found.row_count,
                expected_checksum=checksum(expected),
                found_checksum=checksum(found),
                pruned_batches=there.pruned_batches if there else 0,
                open_batches=there.open_batches if there else 0,
                parked_batches=there.parked_batches if there else 0,
                held_events=there.held_events if there else 0,
                stray_events=untracked[day],
                late_events=late[day],
                unknown_rows=unknown[day],
            )
        )
    return tuple(totals)


def _read(stores: Stores, batch_ids: Sequence[UUID]) -> list[Batch]:
    with ledger_transaction(stores.engine) as connection:
        return ledger.read_processed(connection, batch_ids)


def _chunks(processed: Iterable[tuple[UUID, int]]) -> Iterator[list[UUID]]:
    chunk: list[UUID] = []
    rows = 0
    for batch_id, count in processed:
        chunk.append(batch_id)
        rows += count
        if len(chunk) >= _MAX_BATCHES or rows >= _MAX_ROWS:
            yield chunk
            chunk, rows = [], 0
    if chunk:
        yield chunk


def _sum(pairs: Iterable[tuple[date, int]]) -> Counter[date]:
    counted: Counter[date] = Counter()
    for day, count in pairs:
        counted[day] += count
    return counted
