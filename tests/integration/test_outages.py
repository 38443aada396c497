"""An outage of a day parks no batch: what a server's trouble fails is delivered by itself once it is over."""

import random
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from outbox_pipeline.batches import BatchStatus, Lease
from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.errors import InDoubtError, ServerMemoryError
from outbox_pipeline.postgres import leases
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.relay.attempts import backoff, end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.children import recover
from tests.fixtures.clock import Clock
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.proxy import Fault, FaultyProxy, through

_OUTAGE = timedelta(hours=24)
#: As a process that keeps its lease through hours of the test's clock.
_LONG = {"lease_seconds": 86_400 * 2, "request_seconds": 86_400 * 2}


def patient(stores: Stores, *, retry_max_seconds: float | None = None) -> Stores:
    """The same stores with the waits of a real outbox, or longer ones, and leases that no jump of the clock ends."""
    waits = {name: Settings.model_fields[name].default for name in ("retry_base_seconds", "retry_max_seconds")}
    longest = {} if retry_max_seconds is None else {"retry_max_seconds": retry_max_seconds}
    return Stores(stores.engine, stores.client, stores.settings.model_copy(update={**waits, **longest, **_LONG}))


def cut_one(engine: Engine, settings: Settings, count: int = 1) -> UUID:
    """Publish some events and cut them into one batch."""
    publish(engine, count)
    (batch,) = cut_batches(engine, settings, limit=1).batches
    return batch.batch_id


def batch_of(engine: Engine, batch_id: UUID) -> tuple[BatchStatus, int, int]:
    """Return a batch's status and its failures, its own and those of servers."""
    with ledger_transaction(engine) as connection:
        found = leases.read_batch(connection, batch_id)
    return found.status, found.failures, found.transient_failures


def fail_until_parked(stores: Stores, clock: Clock, kind: str, *, until: timedelta) -> tuple[timedelta, int]:
    """Fail every attempt as soon as it is due, by the ledger's clock; return when it ended and after how many.

    Ends when the batch is parked, or *until*.
    """
    settings, passed, count = stores.settings, timedelta(0), 0
    while passed < until:
        clock.jump(passed / timedelta(days=1))
        requests = request_batches(stores.engine, settings, limit=1)
        if not requests:
            break
        (request,) = requests
        lease = Lease(request.batch_id, request.attempt, "one")
        wait = backoff(count, settings)
        with ledger_transaction(stores.engine) as connection:
            assert leases.take_lease(connection, lease, lasting=settings.lease, run_id=None)
            status = leases.fail_attempt(
                connection, lease, error="away", kind=kind, wait=wait, max_attempts=settings.max_attempts
            )
        count += 1
        if status == BatchStatus.PARKED:
            break
        passed += wait + timedelta(milliseconds=1)
    return passed, count


@pytest.mark.parametrize(("kind", "retry_max_seconds"), [("in_doubt", None), ("transient", 1800), ("witness", 1800)])
def test_an_outage_of_a_day_parks_nothing(
    stores: Stores, clock: Clock, kind: str, retry_max_seconds: float | None
) -> None:
    """By the default schedule and by a slower one, and by itself delivered when it is over."""
    random.seed(kind)
    stores = patient(stores, retry_max_seconds=retry_max_seconds)
    batch_id = cut_one(stores.engine, stores.settings)

    passed, count = fail_until_parked(stores, clock, kind, until=_OUTAGE)
    status, failures, transient_failures = batch_of(stores.engine, batch_id)
    clock.jump((passed + timedelta(hours=1)) / timedelta(days=1))
    relay(stores, until_empty=True)

    assert (status, failures, transient_failures) == (BatchStatus.FAILED, 0, count)
    assert count > (100 if retry_max_seconds is None else stores.settings.max_attempts)
    assert_each_exactly_once(stores.engine, stores.client)


def test_trouble_that_does_not_end_asks_for_a_person(stores: Stores, clock: Clock) -> None:
    """After more than a day of it the batch is parked; a resume gives it another day."""
    stores = patient(stores, retry_max_seconds=3600)
    batch_id = cut_one(stores.engine, stores.settings)

    passed, _ = fail_until_parked(stores, clock, "transient", until=_OUTAGE * 2)
    parked, *_ = batch_of(stores.engine, batch_id)
    with ledger_transaction(stores.engine) as connection:
        leases.resume_parked(connection)
    again, _ = fail_until_parked(stores, clock, "transient", until=timedelta(hours=3))

    assert parked == BatchStatus.PARKED
    assert leases.TROUBLE_LASTS <= passed < leases.TROUBLE_LASTS + timedelta(hours=2)
    assert batch_of(stores.engine, batch_id)[0] == BatchStatus.FAILED
    assert again >= timedelta(hours=3)


def test_failures_of_its_own_park_a_batch_after_the_limit(stores: Stores, clock: Clock) -> None:
    """Trouble before or between them gives a batch no more of them."""
    batch_id = cut_one(stores.engine, stores.settings)
    _, troubles = fail_until_parked(patient(stores), clock, "transient", until=timedelta(hours=1))

    _, count = fail_until_parked(patient(stores), clock, "data", until=timedelta(days=3))

    assert batch_of(stores.engine, batch_id) == (BatchStatus.PARKED, 10, troubles)
    assert count == 10


def test_a_clock_that_was_ahead_gives_trouble_no_more_time(stores: Stores, clock: Clock) -> None:
    """A beginning in the future counts as now: the trouble ends after a day all the same, not after the jump."""
    batch_id = cut_one(stores.engine, stores.settings)
    with stores.engine.begin() as connection:
        connection.execute(
            text("UPDATE outbox.batch SET transient_failures = 20, trouble_since = now() + interval '400 days'")
        )

    stores = patient(stores, retry_max_seconds=3600)
    fail_until_parked(stores, clock, "transient", until=_OUTAGE * 2)

    assert batch_of(stores.engine, batch_id)[0] == BatchStatus.PARKED


def test_a_full_disk_parks_nothing_and_drains_by_itself(stores: Stores, clock: Clock) -> None:
    """ClickHouse's own refusal (243), for a day, with an attempt every two hours; then there is space again."""
    slow = {"retry_base_seconds": 7200, "retry_max_seconds": 7200, **_LONG}
    stores = replace(stores, settings=stores.settings.model_copy(update=slow))
    publish(stores.engine, 20)
    full = "ALTER TABLE {table:Identifier} MODIFY SETTING min_free_disk_bytes_to_perform_insert = 1000000000000000000"
    stores.client.run(full)

    failures = []
    for hours in range(0, 24, 2):
        clock.jump(hours / 24)
        failures += relay(stores).failures
    with stores.engine.begin() as connection:
        row = connection.execute(
            text("SELECT status, failures, transient_failures, last_error_kind FROM outbox.batch")
        ).one()
    stores.client.run("ALTER TABLE {table:Identifier} RESET SETTING min_free_disk_bytes_to_perform_insert")
    clock.jump(1.1)
    relay(stores, until_empty=True)

    assert all("min_free_disk_bytes_to_perform_insert" in said for said in failures), failures
    assert all("Free or add space on ClickHouse's disk" in said for said in failures), failures
    assert tuple(row) == ("failed", 0, len(failures), "in_doubt")
    assert len(failures) == 12
    assert_each_exactly_once(stores.engine, stores.client)


@pytest.mark.parametrize("fault", [Fault.CUT_BODY, Fault.REFUSE_503])
def test_broken_connections_park_nothing(stores: Stores, proxy: FaultyProxy, fault: Fault) -> None:
    """More of them than a batch may have failures of its own, and the batch goes on."""
    impatient = {"max_attempts": 2, "retry_base_seconds": 0.01, "retry_max_seconds": 0.02}
    settings = through(proxy, stores.settings.model_copy(update=impatient))
    publish(stores.engine, 5)
    proxy.inject(fault, times=4)
    client = open_client(settings)

    recover(Stores(stores.engine, client, settings))
    client.close()

    assert_each_exactly_once(stores.engine, stores.client)


@pytest.mark.parametrize(
    ("stage", "restarted", "expected"),
    [("requested", False, (0, 1)), ("delivering", True, (0, 1)), ("delivering", False, (1, 0))],
)
def test_silence_counts_for_the_batch_only_where_a_run_had_it(
    stores: Stores, stage: str, restarted: bool, expected: tuple[int, int]
) -> None:
    """A request that no run took up, and an attempt over which PostgreSQL was restarted, are a server's trouble."""
    batch_id = cut_one(stores.engine, stores.settings)
    (request,) = request_batches(stores.engine, stores.settings, limit=1)
    if stage == "delivering":
        start_requested(stores, batch_id, request.attempt).close()
    with stores.engine.begin() as connection:
        # Before the server was started, as if it had been restarted since.
        begun = "pg_postmaster_start_time() - interval '1 s'" if restarted else "started_at"
        connection.execute(text(f"UPDATE outbox.batch SET lease_until = clock_timestamp(), started_at = {begun}"))

    request_batches(stores.engine, stores.settings, limit=1)

    assert batch_of(stores.engine, batch_id)[1:] == expected


def test_memory_is_a_servers_trouble(stores: Stores) -> None:
    """An error of ClickHouse's memory is in doubt, like a full disk: it may have written a part."""
    batch_id = cut_one(stores.engine, stores.settings)
    (request,) = request_batches(stores.engine, stores.settings, limit=1)

    end_failed(start_requested(stores, batch_id, request.attempt), ServerMemoryError("no memory"))

    assert issubclass(ServerMemoryError, InDoubtError)
    assert batch_of(stores.engine, batch_id) == (BatchStatus.FAILED, 0, 1)
