"""Let a ledger go on that was set back or moved: after a restore, a failover, or in a clone.

The old instance, which went on, delivered events that are still pending here. ClickHouse knows them: what stands there
under the same position and the same event id as here is delivered, and becomes a batch of this ledger; what does not is
reported and never touched. Its ids are kept, so that an event that is published again under one of them is held.

Invariant: everything in the ledger happens in one transaction, identity last. Until it commits the ledger stays
stopped. What is written to ClickHouse before that refuses inserts of all instances, and comes first: once those that
had begun have ended, what ClickHouse shows is all that was ever delivered without this ledger's knowledge.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.clickhouse.batch_contents import (
    ShownBatch,
    fenced_attempts,
    foreign_rows,
    shown_batches,
    shown_rows,
)
from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.load import raise_fence
from outbox_pipeline.clickhouse.owner import read_claims
from outbox_pipeline.clickhouse.proof import proof_in_clickhouse
from outbox_pipeline.clickhouse.witness import ADOPTION, Cut, add_cuts, count_rows_since, highest_number
from outbox_pipeline.errors import InDoubtError, LedgerError
from outbox_pipeline.logs import log
from outbox_pipeline.operations.hidden import find_hidden, put_back_untracked, set_forward
from outbox_pipeline.operations.running_inserts import wait_for_inserts
from outbox_pipeline.postgres import adopt as adoption
from outbox_pipeline.postgres import cut, elsewhere, hidden
from outbox_pipeline.postgres.conditions import LedgerConditions, read_conditions
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.errors import hidden_sentence
from outbox_pipeline.postgres.leases import read_batch
from outbox_pipeline.postgres.quoting import quoted_name
from outbox_pipeline.postgres.schema import check_version
from outbox_pipeline.relay.lost_log import require_log
from outbox_pipeline.relay.owner import require_owner
from outbox_pipeline.relay.witness import find_foreign, foreign_cuts
from outbox_pipeline.stores import Stores

#: Rows of each kind that a report names.
MAX_SAMPLES = 10

_STOP_THE_OTHER = (
    "The ledger is unchanged, but ClickHouse refuses every instance of it now: stop the other's relays and Dagster, "
    "then repeat 'outbox adopt'."
)


@dataclass(frozen=True)
class UnmatchedRow:
    """A row in ClickHouse that no event here answers for, or an event here at a position of that batch."""

    position: int
    event_id: UUID
    batch_id: UUID


@dataclass(frozen=True)
class Adoption:
    """What adopting found and did, or with `is_dry_run` would do.

    `adopted_*`: batches of the old instance with events that are pending here, now processed; `unfinished_batches`:
    those of them that ClickHouse does not show whole, left to a run. `withdrawn_batches`: frozen here with events among
    those, not sent, and taken back. `raised_batches`: batches whose attempt or generation the old instance had carried
    further. `incomplete_batches`: processed here, but ClickHouse shows fewer rows or none; a replay delivers them
    again. `strange_*`: rows of unknown batches whose events are not here. `repeated_events`: events here that stand
    there at another position, because they were published again; they are held. `kept_ids`: ids of events there that
    are not here at the same position, which the ledger keeps from now on. `doubled_*`: events that another batch here
    delivers as well. `hidden_*`: events at positions of old batches, which were drawn once more after the sequence had
    gone back; they get new positions. `untracked_events`: events at positions that are in no place of the ledger, which
    become unclaimed. `gap_count`: gaps that later cuts settle. `sequence_*`: where the sequence stood
    and stands. `last_loaded_at`: the newest row of an unknown batch.
    """

    was_own: bool = False
    is_dry_run: bool = False
    adopted_batches: int = 0
    adopted_events: int = 0
    unfinished_batches: int = 0
    withdrawn_batches: int = 0
    raised_batches: int = 0
    incomplete_batches: int = 0
    strange_batches: int = 0
    strange_rows: int = 0
    strange_samples: list[UnmatchedRow] = field(default_factory=list)
    repeated_events: int = 0
    kept_ids: int = 0
    doubled_events: int = 0
    doubled_samples: list[UUID] = field(default_factory=list)
    hidden_events: int = 0
    hidden_samples: list[UnmatchedRow] = field(default_factory=list)
    untracked_events: int = 0
    gap_count: int = 0
    sequence_before: int = 0
    sequence_after: int = 0
    last_loaded_at: datetime | None = None


@dataclass
class _Scan:
    """What one pass over the event log leaves to look into; grows with the batches that are not as this ledger says.

    `sent`: open batches of this ledger with rows there. `mixed`: those under whose ids there are rows of events that it
    did not have when it was adopted before.
    """

    unknown: dict[UUID, ShownBatch] = field(default_factory=dict)
    further: dict[UUID, int] = field(default_factory=dict)
    fenced: dict[UUID, int] = field(default_factory=dict)
    sent: set[UUID] = field(default_factory=set)
    mixed: list[ShownBatch] = field(default_factory=list)
    incomplete_count: int = 0
    highest_position: int = 0


def adopt(stores: Stores, *, dry_run: bool = False) -> Adoption:
    """Make this instance the only one that delivers from the ledger; with *dry_run* only find out what that would do.

    Does nothing when the ledger is this cluster's own and ClickHouse has nothing on record that it does not know. The
    old instance must be stopped: of what it goes on with, each insert is refused and each cut stops this one again.
    Raises ConfigurationError when the event log is another outbox's, it or TransientError when either side is not
    ready, InDoubtError while the old instance still works, LedgerError while policies may hide rows; the ledger is then
    stopped as it was, and a repetition begins anew.
    """
    require_log(stores.engine, stores.client)
    claims = read_claims(stores.client)
    suspects = find_foreign(stores)
    # It waits for ClickHouse's answers between its statements, and they may take long.
    lock_timeout = stores.settings.lock_timeout_seconds
    with ledger_transaction(stores.engine, lock_timeout_seconds=lock_timeout, idle_seconds=0) as connection:
        check_version(connection)
        cut.lock_unclaimed(connection)
        conditions = read_conditions(connection)
        if conditions.hidden_tables:
            raise LedgerError(hidden_sentence(conditions.role_name, conditions.hidden_tables))
        if conditions.is_own_cluster and not foreign_cuts(connection, suspects):
            return Adoption(was_own=True, is_dry_run=dry_run)
        _refuse_subscribed(connection)
        require_owner(stores.client.table, claims, conditions.ledger_id)
        # Not after the gaps, as elsewhere: a cut, which waits for `unclaimed` now, is all that locks those.
        adoption.lock_open(connection)
        floor = max(highest_number(stores.client), conditions.last_cut_number) + 1
        if not dry_run:
            _refuse_others(stores.client, conditions, floor)
        result = _adopt(connection, stores, conditions, dry_run=dry_run)
        if dry_run:
            connection.rollback()
            return result
        _require_alone(stores.client, floor)
        adoption.adopt_cluster(connection, floor=floor)
    log().info("ledger_adopted", batches=result.adopted_batches, events=result.adopted_events)
    return result


def _refuse_subscribed(connection: Connection) -> None:
    """Raise LedgerError while another server still writes into the outbox's tables: nothing settled would stay so."""
    names = [quoted_name(name) for name in hidden.read_subscriptions(connection)]
    if names:
        raise LedgerError(
            f"Tables of the outbox are still fed by logical replication (subscription {', '.join(names)}), so what is "
            "learned now would be overwritten: end all writing on the server that it comes from, wait until everything "
            f"has arrived, run {' '.join(f'DROP SUBSCRIPTION {name};' for name in names)} as its owner, then repeat "
            "'outbox adopt'."
        )


def _refuse_others(client: EventLogClient, conditions: LedgerConditions, floor: int) -> None:
    """Let ClickHouse refuse what is inserted under a lower number than this, then wait until what had begun has ended.

    Attempts of this ledger that are at work are refused too, and looked at again by their next one.
    """
    add_cuts(client, [Cut(floor, ADOPTION)], conditions.ledger_id)
    seconds = wait_for_inserts(client)
    if seconds is not None:
        raise InDoubtError(
            f"An insert into {client.table} that had begun before still runs in ClickHouse (for {seconds:.0f} s). The "
            "ledger is unchanged, but ClickHouse refuses every instance of it now: repeat 'outbox adopt' when it has "
            "ended, or end it with KILL QUERY."
        )


def _require_alone(client: EventLogClient, floor: int) -> None:
    """Raise InDoubtError when anything but this adoption is on record under its number or above."""
    if count_rows_since(client, floor) != 1:
        raise InDoubtError(
            f"Another instance of this ledger wrote to ClickHouse while it was adopted here: it still works. "
            f"{_STOP_THE_OTHER}"
        )


def _adopt(connection: Connection, stores: Stores, conditions: LedgerConditions, *, dry_run: bool) -> Adoption:
    adoption.create_stage(connection)
    find_hidden(connection, stores, looks_at_all=conditions.may_have_gone_back)
    hidden_count, hidden_samples = hidden.read_hidden(connection, limit=MAX_SAMPLES)
    scan = _scan(connection, stores.client)
    result = _stage_unknown(connection, stores.client, scan)
    withdrawn_count = _withdraw(connection, stores.client, scan, dry_run=dry_run)
    doubled = adoption.disown_settled(connection) + elsewhere.settle_repeated(connection)
    repeated_count = elsewhere.restart_repeated(connection)
    gap_count = adoption.release_positions(connection, keep_holders=conditions.is_own_cluster)
    raised_count = _catch_up(connection, stores.client, scan)
    staged = adoption.read_staged(connection)
    unfinished = [one for one in staged if not _insert(connection, stores, scan, staged=one, dry_run=dry_run)]
    untracked_count = put_back_untracked(connection) if conditions.may_have_gone_back else 0
    before = cut.read_last_drawn(connection)
    highest = max(scan.highest_position, conditions.last_known, adoption.highest_position(connection))
    after = set_forward(connection, before, highest, dry_run=dry_run)
    if hidden_count and not dry_run:
        hidden.move_hidden(connection)
    return replace(
        result,
        is_dry_run=dry_run,
        adopted_batches=len(staged),
        adopted_events=sum(one.event_count for one in staged),
        unfinished_batches=len(unfinished),
        withdrawn_batches=withdrawn_count,
        raised_batches=raised_count,
        repeated_events=repeated_count,
        kept_ids=elsewhere.count_new(connection) if dry_run else elsewhere.keep(connection),
        doubled_events=len(doubled),
        doubled_samples=[event_id for _, event_id in doubled[:MAX_SAMPLES]],
        hidden_events=hidden_count,
        hidden_samples=[UnmatchedRow(*sample) for sample in hidden_samples],
        untracked_events=untracked_count,
        gap_count=gap_count,
        sequence_before=before,
        sequence_after=after,
    )


def _scan(connection: Connection, client: EventLogClient) -> _Scan:
    scan = _Scan(incomplete_count=adoption.count_delivered(connection))
    for block in shown_batches(client):
        known = adoption.read_known(connection, [shown.batch_id for shown in block])
        for shown in block:
            scan.highest_position = max(scan.highest_position, shown.last_position)
            _sort(scan, shown, known.get(shown.batch_id))
    return scan


def _sort(scan: _Scan, shown: ShownBatch, known: adoption.KnownBatch | None) -> None:
    if known is None:
        scan.unknown[shown.batch_id] = shown
        return
    if known.has_foreign:
        scan.mixed.append(shown)
    if known.status != BatchStatus.PROCESSED:
        scan.sent.add(shown.batch_id)
    if shown.generation > known.generation:
        scan.further[shown.batch_id] = shown.generation
    if known.status == BatchStatus.PROCESSED and 0 < (known.accepted_count or 0) <= shown.row_count:
        scan.incomplete_count -= 1


def _stage_unknown(connection: Connection, client: EventLogClient, scan: _Scan) -> Adoption:
    """Compare every row that is of no batch of this ledger with the events here, and gather the ids of the others."""
    highest = adoption.highest_position(connection)
    for shown in scan.unknown.values():
        for rows in shown_rows(client, shown.batch_id, shown.bounds):
            adoption.stage_rows(connection, shown.batch_id, rows, up_to=highest)
        adoption.drop_unmatched(connection, shown.batch_id)
    for shown in scan.mixed:
        batch = read_batch(connection, shown.batch_id)
        for rows in foreign_rows(client, batch, shown):
            elsewhere.gather_foreign(connection, shown.batch_id, rows)
    elsewhere.find_repeated(connection)
    strange = elsewhere.read_strange(connection, limit=MAX_SAMPLES)
    return Adoption(
        strange_batches=strange.batch_count,
        strange_rows=strange.row_count,
        strange_samples=[UnmatchedRow(*sample) for sample in strange.samples],
        incomplete_batches=scan.incomplete_count,
        last_loaded_at=max((shown.loaded_at for shown in scan.unknown.values()), default=None),
    )


def _withdraw(connection: Connection, client: EventLogClient, scan: _Scan, *, dry_run: bool) -> int:
    """Give events that the old instance delivered back from batches that were frozen here and never sent.

    The fence comes before the second look: what an attempt may still send of such a batch is refused when it arrives.
    """
    withdrawn = adoption.withdraw_unsent(connection, sent=scan.sent)
    for batch_id, attempt in withdrawn.items():
        if not dry_run:
            raise_fence(client, batch_id, attempt)
        batch = read_batch(connection, batch_id)
        proof, older_count = proof_in_clickhouse(client, batch, generation=batch.generation)
        if proof.row_count or older_count:
            raise _changing(batch_id)
    return len(withdrawn)


def _catch_up(connection: Connection, client: EventLogClient, scan: _Scan) -> int:
    raised = adoption.raise_generations(connection, scan.further)
    for fenced in fenced_attempts(client):
        raised += adoption.raise_attempts(connection, fenced)
        scan.fenced.update({batch_id: fenced[batch_id] for batch_id in fenced.keys() & scan.unknown.keys()})
    adoption.make_open_look_first(connection)
    return raised


def _insert(
    connection: Connection, stores: Stores, scan: _Scan, *, staged: adoption.StagedBatch, dry_run: bool
) -> bool:
    """Write a batch of the old instance into the ledger; tell whether ClickHouse shows it whole: then it is processed.

    The fence comes before the look: what the old instance may still send under this id is refused when it arrives.
    """
    shown = scan.unknown[staged.batch_id]
    attempt = scan.fenced.get(staged.batch_id, 1) + 1
    adoption.insert_adopted(
        connection,
        staged.batch_id,
        attempt=attempt,
        generation=shown.generation,
        has_strangers=shown.row_count > staged.row_count,
        first_day=stores.settings.start_date,
    )
    if not dry_run:
        raise_fence(stores.client, staged.batch_id, attempt)
    batch = read_batch(connection, staged.batch_id)
    proof, older_count = proof_in_clickhouse(stores.client, batch, generation=batch.generation)
    if proof.row_count != staged.row_count:
        raise _changing(staged.batch_id)
    is_whole = older_count == 0 and (proof.row_count, proof.position_sum) == (staged.event_count, staged.position_sum)
    if is_whole:
        # In this same transaction, so the batch is never seen as cut.
        adoption.mark_adopted(connection, staged.batch_id, proof)
    return is_whole


def _changing(batch_id: UUID) -> InDoubtError:
    return InDoubtError(
        f"Batch {batch_id} changes in ClickHouse while it is adopted: the old instance still works. {_STOP_THE_OTHER}"
    )
