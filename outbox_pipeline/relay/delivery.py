"""Deliver one batch: extract, validate, load, mark.

Each step asks the ledger what it must do and derives what it needs from PostgreSQL again when another process did the
steps before it: event rows never change, so the second derivation gives the same bytes. Only the events are kept
in memory between steps, until they are encoded for ClickHouse. Nothing is marked on trust: the proof comes from
ClickHouse's own rows.
"""

import time
import weakref
from contextlib import AbstractContextManager
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection

from outbox_pipeline.batches import Batch, Lease, LedgerIdentity
from outbox_pipeline.clickhouse import load as store
from outbox_pipeline.clickhouse.deadline import read_deadline
from outbox_pipeline.clickhouse.probe import find_refused
from outbox_pipeline.clickhouse.proof import proof_in_clickhouse, proof_of_table
from outbox_pipeline.counts import counted
from outbox_pipeline.errors import BatchDataError, OutboxError, ProofError, ServerMemoryError
from outbox_pipeline.logs import log
from outbox_pipeline.postgres import leases
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.extract import extract_events, reading_seconds
from outbox_pipeline.postgres.watchdog import client_limit
from outbox_pipeline.relay.answers import is_owed_to_views, raise_for_view
from outbox_pipeline.relay.elsewhere import find_already_delivered
from outbox_pipeline.relay.heartbeat import Heartbeat
from outbox_pipeline.relay.known_bytes import require_known_bytes, send_known_bytes
from outbox_pipeline.relay.points import Point, announce
from outbox_pipeline.relay.results import Extracted, Loaded, Marked, Validated
from outbox_pipeline.relay.servers import naming_servers, shown_by_all
from outbox_pipeline.relay.split import Split, memory_sentence, split_if_absent
from outbox_pipeline.relay.witness import witness_attempt
from outbox_pipeline.stores import Stores
from outbox_pipeline.validation import Rules, validate_events

#: Reason code of events that ClickHouse itself refused; its words follow after a colon.
REFUSED_BY_CLICKHOUSE = "refused_by_clickhouse"

#: Sendings of one batch in one attempt before it gives up; each is the whole row set.
_MAX_SENDINGS = 3

#: How much longer than a step's own limit its lease is renewed: the step ends it and says so.
_SLACK_SECONDS = 60


class Delivery:
    """One attempt on one batch by this process; keeps the lease alive until closed."""

    def __init__(self, stores: Stores, lease: Lease, identity: LedgerIdentity) -> None:
        """Start the heartbeat of a lease that was just taken in this ledger."""
        self.lease = lease
        self.identity = identity
        #: Accepted events by type, known where this process validated the batch.
        self.event_types: dict[str, int] | None = None
        #: Whether ClickHouse lacked the memory for the latest insert, None before one.
        self.lacked_memory: bool | None = None
        #: What `load` returned where it gave the batch's events back: there is nothing to mark then.
        self.split: Split | None = None
        #: The generation that ClickHouse answered with an error while the ledger did not take that down.
        self.unnoted_answer: int | None = None
        self._events: pa.Table | None = None
        self._body: store.Body | None = None
        self._started = time.monotonic()
        self._has_sent = False
        self._taken_by: str | None = None
        self._is_fenced = lease.attempt == 1
        self._is_witnessed = False
        self._is_owed = False
        self._is_proven = False
        self._heartbeat = Heartbeat(stores.engine, lease, lasting=stores.settings.lease, limits=stores.limits)
        self.stores = replace(stores, client=stores.client.telling(self._heartbeat.during))
        # An interrupt before somebody has this delivery, to close it, ends the heartbeat as well.
        weakref.finalize(self, self._heartbeat.order_stop).atexit = False
        self._heartbeat.start()

    def close(self) -> None:
        """Stop renewing the lease; without a mark or a failure it then runs out."""
        self._heartbeat.stop()

    def batch(self) -> Batch:
        """Return the ledger's row as it is now."""
        with self._ledger() as connection:
            return leases.read_batch(connection, self.lease.batch_id)

    def prepare(self) -> None:
        """Extract, validate and encode: all that needs no ClickHouse, or next to none. Then no event is in memory."""
        self.extract()
        self.validate()
        batch = self.batch()
        self._body = self._encoded(batch, batch.generation)

    def finish(self, *, reload: bool = False) -> Marked | Split:
        """Load and mark: the rest. A batch that was split has nothing to mark."""
        loaded = self.load(reload=reload)
        return loaded if isinstance(loaded, Split) else self.mark()

    def extract(self) -> Extracted:
        """Read the batch's events from PostgreSQL.

        Raises BatchDataError when rows the ledger counts are gone.
        """
        started = time.monotonic()
        batch = self.batch()
        events = self._read(batch)
        expected = batch.event_count - (batch.rejected_count or 0)
        if events.num_rows != expected:
            raise BatchDataError(
                f"PostgreSQL holds {events.num_rows} of the {expected} events of batch {batch.batch_id}: rows were "
                "deleted by hand or pruned. Restore them, then resume the batch."
            )
        self._events = events
        announce(Point.EXTRACTED)
        return Extracted(events.num_rows, batch.context_bytes, time.monotonic() - started)

    def validate(self) -> Validated:
        """Decide which events are accepted and freeze that with the proof, once for a batch.

        An earlier attempt's decision stands: a deploy in between must not change what is sent under the same token. In
        an adopted ledger, events that another instance has delivered are rejected too; ClickHouse is asked then.
        """
        batch, was_frozen = self.batch(), True
        if not batch.is_frozen:
            was_frozen = False
            rejections = validate_events(self._table(), Rules.from_settings(self.stores.settings))
            rejected = {item.position: [str(reason) for reason in item.reasons] for item in rejections}
            if self.identity.has_elsewhere:
                for position, reason in find_already_delivered(
                    self.stores.client, self._ledger, batch.batch_id
                ).items():
                    rejected.setdefault(position, []).append(reason)
            proof = proof_of_table(without_positions(self._table(), rejected))
            announce(Point.VALIDATED)
            with self._ledger() as connection:
                leases.freeze(connection, self.lease, rejected=rejected, proof=proof)
            announce(Point.FROZEN)
            batch = self.batch()
        accepted = self._accepted(batch)
        self.event_types = _count_types(accepted)
        return Validated(accepted.num_rows, batch.rejected or {}, self.event_types, was_frozen)

    def load(self, *, reload: bool = False) -> Loaded | Split:
        """Make ClickHouse hold exactly the accepted events, whatever an earlier attempt left there.

        Looks before it sends anything a second time. Sends the same generation again first, because a late copy of an
        earlier request is then dropped; raises the generation only when ClickHouse took one and still shows other rows,
        or when *reload* asks for it. Events that ClickHouse refuses by itself are found and rejected, the rest goes on
        as the next generation. That an insert was answered with an error is kept in the ledger, and its rows are no
        proof then (`relay.answers`). A batch that ClickHouse lacks the memory for is split instead, if it has nothing
        of it; this attempt is over then. Raises ProofError when that does not help, ViewError when a view behind the
        log may lack what the log has, WitnessError, before anything is sent, when ClickHouse knows of deliveries that
        this ledger does not, ConfigurationError, with nothing rejected, when it refuses or alters known bytes as well.
        """
        started = time.monotonic()
        if self.unnoted_answer is not None:
            self._note_answer(self.unnoted_answer)
        batch = self._frozen_batch()
        generation = batch.generation
        self._raise_fence()
        self.split = split_if_absent(self.stores.client, self._ledger, self.lease, batch)
        if self.split is not None:
            self.close()
            return self.split
        if reload:
            generation = self._raise_generation()
        elif (batch.attempt > 1 or generation > 0 or self._has_sent) and self._is_whole(batch):
            if batch.proof is not None and batch.proof.row_count == 0:
                # No rows that say that an attempt before has been here: batches behind this one rely on its look.
                self._witness(batch)
            return self._loaded(batch, generation, started, sent_bytes=0)
        sent_bytes, sendings = 0, 0
        while sendings < _MAX_SENDINGS:
            try:
                sent_bytes += self._send(batch, generation)
            except BatchDataError as error:
                generation = self._reject_refused(batch, error)
                batch = self.batch()
                continue
            sendings += 1
            if self._is_shown(batch, generation):
                if batch.is_answered:
                    self._note_answer(None)
                return self._loaded(batch, generation, started, sent_bytes=sent_bytes)
            log().warning("batch_resent", batch_id=str(batch.batch_id), generation=generation)
            generation = self._raise_generation()
        raise ProofError(
            f"ClickHouse took batch {batch.batch_id} {_MAX_SENDINGS} times and still does not show its rows: "
            f"{self._differences(batch, generation)}. Look for something else that changes table "
            f"{self.stores.client.table}, and run 'outbox doctor', which names what hides rows; the batch is kept and "
            "tried again."
        )

    def mark(self) -> Marked:
        """Mark the batch processed and its rejected events quarantined, in one transaction.

        Asks ClickHouse for the proof when this process has not seen it, behind a fence of its own. Raises
        LeaseLostError when another run has taken the batch over, ProofError when ClickHouse does not show it.
        """
        batch = self._frozen_batch()
        self._raise_fence()
        if batch.is_answered:
            raise ProofError(
                f"Batch {batch.batch_id} cannot be marked: ClickHouse answered its insert with an error and has taken "
                "no other one since. Run its load step again."
            )
        if not self._is_proven and not self._is_shown(batch, batch.generation):
            raise ProofError(
                f"Batch {batch.batch_id} cannot be marked: {self._differences(batch, batch.generation)}. "
                "Run its load step again."
            )
        with self._ledger() as connection:
            accepted, quarantined, processed_at = leases.mark_processed(connection, self.lease)
            announce(Point.MARKING)
        announce(Point.MARKED)
        self.close()
        lag = (processed_at - batch.oldest_recorded_at).total_seconds()
        seconds = time.monotonic() - self._started
        log().info("batch_processed", batch_id=str(batch.batch_id), accepted=accepted, quarantined=quarantined)
        return Marked(accepted, quarantined, processed_at, batch.context_bytes, lag, seconds)

    def _ledger(self) -> AbstractContextManager[Connection]:
        self._heartbeat.get_on()
        return ledger_transaction(
            self.stores.engine,
            # Frozen with its row locked this process would keep the batch for ever: as long as the lease must do.
            idle_seconds=self.stores.settings.lease_seconds,
            statement_timeout_seconds=self.stores.limits.statement,
        )

    def _read(self, batch: Batch) -> pa.Table:
        seconds = reading_seconds(batch, self.stores.limits)
        with self._heartbeat.during("reading its events from PostgreSQL", client_limit(seconds) + _SLACK_SECONDS):
            return extract_events(self.stores.engine, batch.batch_id, seconds=seconds)

    def _table(self) -> pa.Table:
        if self._events is None:
            self.extract()
        assert self._events is not None
        return self._events

    def _frozen_batch(self) -> Batch:
        batch = self.batch()
        if not batch.is_frozen:
            self.validate()
            batch = self.batch()
        return batch

    def _accepted(self, batch: Batch) -> pa.Table:
        return without_positions(self._table(), batch.rejected or {})

    def _send(self, batch: Batch, generation: int) -> int:
        assert batch.proof is not None
        body = self._encoded(batch, generation)
        require_known_bytes(self.stores, self.identity.ledger_id)
        with naming_servers(self.stores.client):
            not_after = self._witness(batch)
        self._heartbeat.require_held()
        announce(Point.SENDING)
        if generation > 0:
            store.delete_older_generations(self.stores.client, batch, generation)
            announce(Point.OLDER_DELETED)
            # That may have taken longer than an insert may be on its way.
            not_after = None
        if batch.proof.row_count == 0:
            return 0
        not_after = not_after or read_deadline(self.stores.client, self.stores.settings.lease_seconds)
        self._insert(batch, body, not_after)
        announce(Point.SENT)
        return body.size

    def _insert(self, batch: Batch, body: store.Body, not_after: str) -> None:
        client, self._has_sent, self.lacked_memory = self.stores.client, True, False
        try:
            with naming_servers(client):
                store.insert_generation(client, body, lease=self.lease, identity=self.identity, not_after=not_after)
        except OutboxError as error:
            self.lacked_memory = isinstance(error, ServerMemoryError)
            if error.answer is not None:
                self._note_answer(body.generation)
                is_owed = self._is_owed and body.generation == batch.generation
                raise_for_view(self.stores, batch, body.generation, error, is_owed=is_owed)
            if self.lacked_memory:
                raise ServerMemoryError(memory_sentence(batch, str(error))) from None
            raise
        self._taken_by = client.answered_by

    def _encoded(self, batch: Batch, generation: int) -> store.Body:
        # Encoded, the events need no memory here; another sending, or another generation, reads them again.
        body, self._body = self._body, None
        if body is None or body.generation != generation:
            assert batch.proof is not None
            batch.proof.require_known()
            body = store.as_arrow(self._accepted(batch), generation, version=batch.proof.version)
        self._events = None
        return body

    def _note_answer(self, generation: int | None) -> None:
        self.unnoted_answer = generation
        with self._ledger() as connection:
            leases.note_answer(connection, self.lease, generation)
        self.unnoted_answer = None
        announce(Point.ANSWERED)

    def _reject_refused(self, batch: Batch, error: BatchDataError) -> int:
        # Refused too, it is the server or the way to it, and no event is to blame.
        send_known_bytes(self.stores, self.identity.ledger_id)
        accepted = self._accepted(batch)
        refused = find_refused(self.stores.client, accepted, batch.batch_id)
        if not refused:
            raise error
        reasons = {position: [f"{REFUSED_BY_CLICKHOUSE}: {said}"] for position, said in refused.items()}
        rejected = {**(batch.rejected or {}), **reasons}
        proof = proof_of_table(without_positions(accepted, reasons))
        with self._ledger() as connection:
            generation = leases.refreeze(connection, self.lease, rejected=rejected, proof=proof)
        announce(Point.REFROZEN)
        return generation

    def _witness(self, batch: Batch) -> str | None:
        """Look once whether this ledger may send; the look brings the deadline of a sending that follows at once."""
        if self._is_witnessed:
            return None
        not_after = witness_attempt(self.stores, self._ledger, batch, self.identity)
        self._is_witnessed = True
        return not_after

    def _raise_fence(self) -> None:
        # A first attempt has none before it whose request could still be on its way.
        if not self._is_fenced:
            store.raise_fence(self.stores.client, self.lease.batch_id, self.lease.attempt)
            self._is_fenced = True
            announce(Point.FENCED)

    def _raise_generation(self) -> int:
        with self._ledger() as connection:
            generation = leases.raise_generation(connection, self.lease)
        announce(Point.GENERATION_RAISED)
        return generation

    def _is_whole(self, batch: Batch) -> bool:
        """Tell whether ClickHouse shows the batch and no view behind the log may lack it."""
        is_shown = self._is_shown(batch, batch.generation)
        if not batch.is_answered:
            return is_shown
        self._is_owed = is_owed_to_views(self.stores, batch)
        if is_shown and not self._is_owed:
            self._note_answer(None)
            return True
        if batch.may_resend:
            # What follows is the one sending that was allowed, whatever becomes of it.
            self._note_answer(batch.generation)
        return False

    def _is_shown(self, batch: Batch, generation: int) -> bool:
        self._is_proven = shown_by_all(
            self.stores.client, lambda: not self._differences(batch, generation), taken_by=self._taken_by
        )
        if self._is_proven:
            announce(Point.PROVEN)
        return self._is_proven

    def _differences(self, batch: Batch, generation: int) -> str:
        return proof_differences(self.stores, batch, generation=generation)

    def _loaded(self, batch: Batch, generation: int, started: float, *, sent_bytes: int) -> Loaded:
        assert batch.proof is not None
        seconds = time.monotonic() - started
        count = batch.proof.row_count
        log().info("batch_loaded", batch_id=str(batch.batch_id), rows=count, generation=generation)
        return Loaded(count, sent_bytes, generation, sent_bytes == 0, seconds, batch.proof)


def proof_differences(stores: Stores, batch: Batch, *, generation: int) -> str:
    """Say how ClickHouse's rows of a frozen batch differ from the stored proof; empty when they are exactly right."""
    assert batch.proof is not None
    found, foreign_count = proof_in_clickhouse(stores.client, batch, generation=generation)
    differences = batch.proof.differences(found)
    if foreign_count:
        differences = ", ".join(filter(None, [differences, f"{counted(foreign_count, 'row')} of another generation"]))
    return differences


def without_positions(events: pa.Table, rejected: dict[int, list[str]]) -> pa.Table:
    """Return the events whose position is not among *rejected*, in the same order, in one chunk."""
    if not rejected:
        return events
    refused = pc.is_in(events["position"], value_set=pa.array(list(rejected), pa.int64()))
    return events.filter(pc.invert(refused)).combine_chunks()


def _count_types(events: pa.Table) -> dict[str, int]:
    counted = pc.value_counts(events["event_type"].combine_chunks())
    pairs = [(item["values"], item["counts"]) for item in counted.to_pylist()]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))
