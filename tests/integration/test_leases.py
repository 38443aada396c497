"""Leases: one run at a time writes about a batch, and a run that lost its batch writes nothing."""

import threading
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from outbox_pipeline.batches import BatchRequest, BatchStatus, Lease, Proof
from outbox_pipeline.errors import LeaseLostError
from outbox_pipeline.postgres import leases
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.migrations.files import script
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.attempts import start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.clock import shift
from tests.fixtures.events import publish

LASTING = timedelta(seconds=30)
PROOF = Proof(0, 0, 0, 0, 0, 0, 0)


@pytest.fixture
def batch_id(outbox_engine: Engine) -> UUID:
    """A freshly cut batch of three events."""
    publish(outbox_engine, 3)
    return cut_batches(outbox_engine, Settings(), limit=1).batches[0].batch_id


def request(engine: Engine, *, max_attempts: int = 10) -> list[BatchRequest]:
    """Request what is due."""
    with ledger_transaction(engine) as connection:
        return leases.request_due(connection, limit=5, request_seconds=60, max_attempts=max_attempts)


def take(engine: Engine, lease: Lease) -> bool:
    """Take the lease of a requested attempt."""
    with ledger_transaction(engine) as connection:
        return leases.take_lease(connection, lease, lasting=LASTING, run_id="run")


def status(engine: Engine, batch_id: UUID) -> BatchStatus:
    """Return the batch's status."""
    with ledger_transaction(engine) as connection:
        return leases.read_batch(connection, batch_id).status


def expire(engine: Engine) -> None:
    """Let all leases and backoffs be over."""
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE outbox.batch SET lease_until = lease_until - interval '1 hour', next_attempt_at = now()")
        )


def test_a_request_draws_the_attempt_once(outbox_engine: Engine, batch_id: UUID) -> None:
    """A batch that was requested is not requested again until its time is over."""
    first, second = request(outbox_engine), request(outbox_engine)

    assert [(item.batch_id, item.attempt) for item in first] == [(batch_id, 1)]
    assert second == []


def test_a_request_that_never_started_is_made_again(outbox_engine: Engine, batch_id: UUID) -> None:
    """When the run does not start in time the next attempt is drawn, and the late run is refused."""
    request(outbox_engine)
    expire(outbox_engine)

    again = request(outbox_engine)

    assert [item.attempt for item in again] == [2]
    assert not take(outbox_engine, Lease(batch_id, 1, "late"))
    assert take(outbox_engine, Lease(batch_id, 2, "on time"))


def under_way(engine: Engine, batch_id: UUID, stage: str) -> None:
    """Bring a fresh batch to a status that has an end."""
    request(engine)
    if stage == "requested":
        return
    lease = Lease(batch_id, 1, "one")
    take(engine, lease)
    if stage == "failed":
        with ledger_transaction(engine) as connection:
            leases.fail_attempt(connection, lease, error="x", kind="data", wait=timedelta(hours=1), max_attempts=10)


@pytest.mark.parametrize(
    ("stage", "days"), [("requested", 400), ("delivering", 400), ("failed", 400), ("delivering", 1)]
)
def test_an_end_further_ahead_than_a_lease_lasts_is_over(
    outbox_engine: Engine, batch_id: UUID, stage: str, days: int
) -> None:
    """What a clock that was ahead wrote holds no batch up once the clock is right, and counts as no silence."""
    under_way(outbox_engine, batch_id, stage)
    before = request(outbox_engine)
    shift(outbox_engine, days=days)

    after = request(outbox_engine, max_attempts=1 if stage != "failed" else 10)

    assert before == []
    assert [item.attempt for item in after] == [2]
    assert not take(outbox_engine, Lease(batch_id, 1, "late"))
    with ledger_transaction(outbox_engine) as connection:
        assert leases.read_batch(connection, batch_id).failures == (1 if stage == "failed" else 0)


def test_a_run_that_was_not_asked_for_takes_such_a_batch_over(outbox_engine: Engine, batch_id: UUID) -> None:
    """A re-execution and a replay are not refused either; under the right clock the next lease holds again."""
    under_way(outbox_engine, batch_id, "delivering")
    shift(outbox_engine, days=400)

    with ledger_transaction(outbox_engine) as connection:
        second = leases.take_over(connection, batch_id, "two", lasting=LASTING, run_id="other")
        third = leases.take_over(connection, batch_id, "three", lasting=LASTING, run_id="another")

    assert (second, third) == (Lease(batch_id, 2, "two"), None)


def test_a_lease_of_a_process_with_longer_ones_is_left_to_it(outbox_engine: Engine, batch_id: UUID) -> None:
    """How long a lease may last is kept beside it: who looks may have other settings."""
    request(outbox_engine)
    lease = Lease(batch_id, 1, "patient")
    with ledger_transaction(outbox_engine) as connection:
        leases.take_lease(connection, lease, lasting=timedelta(days=3), run_id=None)
    at_first = request(outbox_engine)
    with ledger_transaction(outbox_engine) as connection:
        leases.renew_lease(connection, lease, lasting=timedelta(days=30))

    assert at_first == request(outbox_engine) == []


def test_a_request_that_waits_in_the_queue_keeps_its_length(outbox_engine: Engine, batch_id: UUID) -> None:
    """A request whose end was moved on is not taken for one of another clock; one that was given up is due."""
    request(outbox_engine)
    with ledger_transaction(outbox_engine) as connection:
        leases.set_request_end(connection, batch_id, 1, lasting=timedelta(days=2))
    waiting = request(outbox_engine)
    with ledger_transaction(outbox_engine) as connection:
        leases.set_request_end(connection, batch_id, 1, lasting=timedelta(0))

    assert waiting == []
    assert [item.attempt for item in request(outbox_engine)] == [2]


def test_an_end_without_a_length_is_believed(outbox_engine: Engine, batch_id: UUID) -> None:
    """A process of an earlier version writes no length: its lease holds as it always did."""
    under_way(outbox_engine, batch_id, "delivering")
    with outbox_engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET lasting = NULL, lease_until = now() + interval '1 hour'"))

    assert request(outbox_engine) == []
    expire(outbox_engine)
    assert [item.attempt for item in request(outbox_engine)] == [2]


@pytest.mark.parametrize("stage", ["requested", "delivering", "failed"])
def test_what_was_under_way_at_the_migration_has_a_length(outbox_engine: Engine, batch_id: UUID, stage: str) -> None:
    """A batch that a clock held up before the update is due after it, and a lease that runs goes on."""
    under_way(outbox_engine, batch_id, stage)
    due = []
    for days in (0, 400):
        shift(outbox_engine, days=days)
        with outbox_engine.begin() as connection:
            connection.execute(text("ALTER TABLE outbox.batch DROP COLUMN lasting"))
            connection.exec_driver_sql(script("0008_clock.sql"))
        due.append(len(request(outbox_engine)))

    assert due == [0, 1]


def test_only_one_process_takes_an_attempt(outbox_engine: Engine, batch_id: UUID) -> None:
    """Two processes started for the same attempt: the second is refused, the first may ask again."""
    request(outbox_engine)

    assert take(outbox_engine, Lease(batch_id, 1, "one"))
    assert not take(outbox_engine, Lease(batch_id, 1, "two"))
    assert take(outbox_engine, Lease(batch_id, 1, "one"))


def test_a_run_that_lost_its_lease_can_write_nothing(outbox_engine: Engine, batch_id: UUID) -> None:
    """After another run took over, the first can neither freeze, raise, mark, fail nor renew."""
    old = Lease(batch_id, 1, "old")
    request(outbox_engine)
    take(outbox_engine, old)
    expire(outbox_engine)
    with ledger_transaction(outbox_engine) as connection:
        new = leases.take_over(connection, batch_id, "new", lasting=LASTING, run_id="other")
        assert new == Lease(batch_id, 2, "new")
        leases.freeze(connection, new, rejected={}, proof=PROOF)

    with ledger_transaction(outbox_engine) as connection:
        for write in (leases.mark_processed, leases.raise_generation):
            with pytest.raises(LeaseLostError, match="attempt 2, delivering"):
                write(connection, old)
        with pytest.raises(LeaseLostError):
            leases.freeze(connection, old, rejected={}, proof=PROOF)
        assert not leases.renew_lease(connection, old, lasting=LASTING)
        assert leases.fail_attempt(connection, old, error="x", kind="x", wait=timedelta(0), max_attempts=9) is None

    assert status(outbox_engine, batch_id) == BatchStatus.DELIVERING


def test_nobody_takes_over_a_batch_that_is_held(outbox_engine: Engine, batch_id: UUID) -> None:
    """A run that was not asked for is refused while another holds the lease, unless it is the same Dagster run."""
    request(outbox_engine)
    take(outbox_engine, Lease(batch_id, 1, "one"))

    with ledger_transaction(outbox_engine) as connection:
        assert leases.take_over(connection, batch_id, "two", lasting=LASTING, run_id="other") is None
        next_step = leases.take_over(connection, batch_id, "two", lasting=LASTING, run_id="run")

    assert next_step == Lease(batch_id, 2, "two")


def test_a_batch_is_frozen_once(outbox_engine: Engine, batch_id: UUID) -> None:
    """What was decided before the first insert cannot be decided differently later."""
    lease = Lease(batch_id, 1, "one")
    request(outbox_engine)
    take(outbox_engine, lease)
    with ledger_transaction(outbox_engine) as connection:
        leases.freeze(connection, lease, rejected={1: ["context_too_large"]}, proof=PROOF)

    with pytest.raises(LeaseLostError), ledger_transaction(outbox_engine) as connection:
        leases.freeze(connection, lease, rejected={}, proof=PROOF)


def test_marking_moves_rejected_events_to_quarantine(outbox_engine: Engine, batch_id: UUID) -> None:
    """Marking writes counts, holds the rejected event with its reasons, and takes it out of the batch."""
    lease = Lease(batch_id, 1, "one")
    request(outbox_engine)
    take(outbox_engine, lease)
    with ledger_transaction(outbox_engine) as connection:
        leases.freeze(connection, lease, rejected={2: ["event_type_empty"]}, proof=Proof(2, 0, 0, 0, 0, 0, 0))
        accepted, quarantined, _ = leases.mark_processed(connection, lease)

    with outbox_engine.begin() as connection:
        held = connection.execute(text("SELECT position, reasons, status FROM outbox.quarantined_event")).all()
        positions = connection.scalar(text("SELECT positions::text FROM outbox.batch"))
        statuses = connection.execute(text("SELECT status FROM outbox.event_status ORDER BY position")).scalars().all()

    assert (accepted, quarantined) == (2, 1)
    assert held == [(2, ["event_type_empty"], "held")]
    assert positions == "{[1,2),[3,4)}"
    assert statuses == ["processed", "held", "processed"]


def test_a_batch_is_parked_after_its_last_attempt(outbox_engine: Engine, batch_id: UUID) -> None:
    """Errors and silences both count; at the limit nobody is asked any more until the batch is resumed."""
    for attempt in (1, 2):
        assert [item.attempt for item in request(outbox_engine, max_attempts=3)] == [attempt]
        take(outbox_engine, Lease(batch_id, attempt, "one"))
        with ledger_transaction(outbox_engine) as connection:
            leases.fail_attempt(
                connection,
                Lease(batch_id, attempt, "one"),
                error="no table",
                kind="configuration",
                wait=timedelta(0),
                max_attempts=3,
            )
    assert [item.attempt for item in request(outbox_engine, max_attempts=3)] == [3]
    take(outbox_engine, Lease(batch_id, 3, "one"))
    expire(outbox_engine)

    assert request(outbox_engine, max_attempts=3) == []
    assert status(outbox_engine, batch_id) == BatchStatus.PARKED
    with ledger_transaction(outbox_engine) as connection:
        assert [batch.batch_id for batch in leases.resume_parked(connection)] == [batch_id]
    assert [item.attempt for item in request(outbox_engine, max_attempts=3)] == [4]


def test_a_server_in_trouble_parks_a_batch_only_after_more_than_a_day(outbox_engine: Engine, batch_id: UUID) -> None:
    """Transient failures do not use up the batch's attempts, and yet end too; a resume starts from zero."""
    for attempt in range(1, 22):
        assert [item.attempt for item in request(outbox_engine, max_attempts=2)] == [attempt]
        lease = Lease(batch_id, attempt, "one")
        take(outbox_engine, lease)
        assert status(outbox_engine, batch_id) == BatchStatus.DELIVERING
        with ledger_transaction(outbox_engine) as connection:
            if attempt == 21:
                connection.execute(text("UPDATE outbox.batch SET trouble_since = now() - interval '25 hours'"))
            leases.fail_attempt(connection, lease, error="503", kind="transient", wait=timedelta(0), max_attempts=2)

    assert request(outbox_engine, max_attempts=2) == []
    assert status(outbox_engine, batch_id) == BatchStatus.PARKED
    with ledger_transaction(outbox_engine) as connection:
        leases.resume_parked(connection)
        resumed = leases.read_batch(connection, batch_id)
    assert (resumed.failures, resumed.transient_failures) == (0, 0)


def test_a_limit_below_the_failures_parks_a_failed_batch(outbox_engine: Engine, batch_id: UUID) -> None:
    """A limit of attempts that was lowered counts the failures there were before."""
    for attempt in (1, 2):
        request(outbox_engine, max_attempts=10)
        lease = Lease(batch_id, attempt, "one")
        take(outbox_engine, lease)
        with ledger_transaction(outbox_engine) as connection:
            leases.fail_attempt(
                connection, lease, error="no table", kind="configuration", wait=timedelta(0), max_attempts=10
            )
    assert status(outbox_engine, batch_id) == BatchStatus.FAILED

    assert request(outbox_engine, max_attempts=2) == []
    assert status(outbox_engine, batch_id) == BatchStatus.PARKED


def test_requests_that_no_run_takes_up_park_a_batch_after_more_than_a_day(
    outbox_engine: Engine, batch_id: UUID
) -> None:
    """As many as the limit are not enough: it also takes more than a day."""
    for attempt in (1, 2, 3):
        assert [item.attempt for item in request(outbox_engine, max_attempts=2)] == [attempt]
        expire(outbox_engine)
    with outbox_engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET trouble_since = now() - interval '26 hours'"))

    assert request(outbox_engine, max_attempts=2) == []
    assert status(outbox_engine, batch_id) == BatchStatus.PARKED


def test_a_run_without_id_takes_nothing_from_another(outbox_engine: Engine, batch_id: UUID) -> None:
    """Two processes that are no Dagster runs are not the same run: the second is refused while the first holds."""
    with ledger_transaction(outbox_engine) as connection:
        first = leases.take_over(connection, batch_id, "one", lasting=LASTING, run_id=None)
        second = leases.take_over(connection, batch_id, "two", lasting=LASTING, run_id=None)

    assert first is not None
    assert second is None


def test_a_mark_whose_answer_was_lost_is_done(outbox_engine: Engine, batch_id: UUID) -> None:
    """Marking again under the attempt that marked is the same success, not a lost lease."""
    lease = Lease(batch_id, 1, "one")
    request(outbox_engine)
    take(outbox_engine, lease)
    with ledger_transaction(outbox_engine) as connection:
        leases.freeze(connection, lease, rejected={2: ["event_type_empty"]}, proof=Proof(2, 0, 0, 0, 0, 0, 0))
        first = leases.mark_processed(connection, lease)

    with ledger_transaction(outbox_engine) as connection:
        assert leases.mark_processed(connection, lease) == first


def test_a_lease_is_not_renewed_for_a_delivery_that_nobody_has(stores: Stores) -> None:
    """An interrupt comes when it has begun, and before whoever began it could keep it and close it."""
    publish(stores.engine, 1)
    cut_batches(stores.engine, stores.settings, limit=1)
    (due,) = request(stores.engine)
    name = f"heartbeat-{due.batch_id}"

    def is_beating() -> bool:
        return any(thread.name == name for thread in threading.enumerate())

    delivery = start_requested(stores, due.batch_id, due.attempt)
    assert is_beating()
    del delivery

    assert wait_until(lambda: not is_beating(), seconds=10)
