"""A batch that ClickHouse lacks the memory for is split, and each of its events arrives exactly once all the same."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from outbox_pipeline.batches import Batch, BatchStatus, Lease
from outbox_pipeline.clickhouse import load
from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.clickhouse.deadline import read_deadline
from outbox_pipeline.clickhouse.load import Body, as_arrow, insert_generation
from outbox_pipeline.errors import ConfigurationError, FencedError, InDoubtError, LeaseLostError
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.monitoring.metrics import metrics_text
from outbox_pipeline.monitoring.status import read_status
from outbox_pipeline.monitoring.trace import trace_event
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.repair import repair
from outbox_pipeline.operations.replay import Outcome, replay
from outbox_pipeline.operations.replay_choice import Choice, choose
from outbox_pipeline.operations.resume import resume
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.postgres import leases
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.postgres.overview import read_ledger_breaches
from outbox_pipeline.postgres.split import split_batch
from outbox_pipeline.postgres.tables import batch as batch_table
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested, start_unrequested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.relay.split import Split
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import change, copy_rows
from tests.fixtures.children import recover
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.moves import move_by_hand
from tests.fixtures.owners import identity_of
from tests.fixtures.proxy import FaultyProxy
from tests.fixtures.too_large import NO_MEMORY, let_be_too_large, starve

LARGE = '{"large": "' + "x" * 2000 + '"}'


def batches_of(stores: Stores) -> list[Batch]:
    """Return the ledger's batches in the order they were cut."""
    with ledger_transaction(stores.engine) as connection:
        return leases.read_batches(connection, batch_table.c.batch_id.is_not(None))


def split_attempt(stores: Stores) -> Delivery:
    """Start the attempt that is to split the only batch that is due."""
    (request,) = request_batches(stores.engine, stores.settings, limit=1)
    return start_requested(stores, request.batch_id, request.attempt)


def insert(stores: Stores, body: Body, lease: Lease) -> None:
    """Send as an attempt would that has just asked for its deadline."""
    not_after = read_deadline(stores.client, stores.settings.lease_seconds)
    insert_generation(stores.client, body, lease=lease, identity=identity_of(stores), not_after=not_after)


def split(stores: Stores, count: int = 8) -> tuple[UUID, list[UUID]]:
    """Publish and split a batch; returns it and its events."""
    event_ids = publish(stores.engine, count)
    batch_id = let_be_too_large(stores)
    assert isinstance(deliver(split_attempt(stores)), Split)
    return batch_id, event_ids


@pytest.fixture
def starved(stores: Stores, proxy: FaultyProxy) -> Iterator[Stores]:
    """The same stores, where inserts into ClickHouse have little memory."""
    settings = starve(proxy, stores.settings.model_copy(update={"retry_base_seconds": 0.01, "retry_max_seconds": 0.02}))
    client = open_client(settings)
    yield replace(stores, client=client, settings=settings)
    client.close()


def test_a_batch_that_is_too_large_is_delivered_in_halves(stores: Stores, starved: Stores) -> None:
    """ClickHouse itself says 241, three times; then halves go, and halves of halves, and nothing waits for a person."""
    event_ids = publish(stores.engine, 1000, context=LARGE)

    recover(starved)

    split_batches = [batch for batch in batches_of(stores) if batch.status == BatchStatus.SPLIT]
    processed = [batch for batch in batches_of(stores) if batch.status == BatchStatus.PROCESSED]
    assert split_batches
    assert split_batches[0].event_count == 1000
    assert len(processed) >= 2
    assert {batch.status for batch in batches_of(stores)} == {BatchStatus.SPLIT, BatchStatus.PROCESSED}
    assert sum(batch.event_count for batch in processed) == 1000
    assert all(batch.cut_number is not None for batch in split_batches)
    assert_each_exactly_once(stores.engine, stores.client, event_ids)


def test_three_attempts_in_a_row_come_first(stores: Stores, starved: Stores) -> None:
    """Each tells what follows; an attempt that sent and failed for another reason begins the count anew."""
    publish(stores.engine, 1000, context=LARGE)
    said = []
    for failures in (1, 2):
        said += relay(starved).failures
        (batch,) = batches_of(stores)
        assert (batch.status, batch.memory_failures, batch.failures) == (BatchStatus.FAILED, failures, 0)
        with stores.engine.begin() as connection:
            connection.execute(text("UPDATE outbox.batch SET next_attempt_at = now()"))
    delivery = split_attempt(stores)
    delivery.lacked_memory = False
    end_failed(delivery, InDoubtError("The connection broke."))
    (batch,) = batches_of(stores)

    assert (batch.status, batch.memory_failures, batch.attempt) == (BatchStatus.FAILED, 0, 3)
    assert len(said) == 2
    assert all("After three such attempts in a row the batch is split" in sentence for sentence in said)


def test_one_event_is_never_split(stores: Stores, starved: Stores, proxy: FaultyProxy) -> None:
    """It waits for more memory, with a sentence that says so, and goes when there is some."""
    starve(proxy, stores.settings, NO_MEMORY)
    publish(stores.engine, 1)
    said = []
    for _ in range(4):
        said += relay(starved).failures
        with stores.engine.begin() as connection:
            connection.execute(text("UPDATE outbox.batch SET next_attempt_at = now()"))
    proxy.change_nothing()
    recover(starved)

    assert len(said) == 4
    assert all("The batch is one event, which cannot be split: it waits for more memory" in each for each in said)
    assert [batch.status for batch in batches_of(stores)] == [BatchStatus.PROCESSED]
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_batch_of_which_rows_are_there_is_not_split(stores: Stores) -> None:
    """Half of an insert was written: the batch is sent again, as ever, and completed."""
    publish(stores.engine, 8)
    batch_id = let_be_too_large(stores)
    delivery = split_attempt(stores)
    delivery.validate()
    events = extract_events(stores.engine, batch_id, seconds=10)
    body = as_arrow(events.slice(0, 3), 0)
    insert(stores, body, delivery.lease)
    deliver(delivery)

    assert [batch.status for batch in batches_of(stores)] == [BatchStatus.PROCESSED]
    assert_each_exactly_once(stores.engine, stores.client)


@pytest.mark.parametrize(
    "change",
    [
        "generation = 1",
        "processed_at = now(), accepted_count = 8, proved_at = now()",
        "foreign_positions = '{[100,200)}'",
    ],
    ids=["taken", "processed", "adopted"],
)
def test_what_was_ever_taken_is_not_split(stores: Stores, change: str) -> None:
    """Neither by the code nor by the statement: a generation that ClickHouse took, a replay, an adopted batch."""
    publish(stores.engine, 8)
    batch_id = let_be_too_large(stores)
    with stores.engine.begin() as connection:
        connection.execute(text(f"UPDATE outbox.batch SET {change}"))
    delivery = split_attempt(stores)
    delivery.close()

    assert not delivery.batch().is_too_large
    with pytest.raises(LeaseLostError), ledger_transaction(stores.engine) as connection:
        split_batch(connection, delivery.lease)
    assert delivery.batch().batch_id == batch_id


def test_a_refused_event_does_not_keep_a_batch_from_being_split(stores: Stores) -> None:
    """A generation that was begun because ClickHouse refused events was never taken."""
    publish(stores.engine, 7)
    publish(stores.engine, 1, event_type="poison")
    stores.client.run("ALTER TABLE {table:Identifier} ADD CONSTRAINT no_poison CHECK event_type != 'poison'")
    let_be_too_large(stores)
    delivery = split_attempt(stores)
    delivery.validate()
    with ledger_transaction(stores.engine) as connection:
        batch = leases.read_batch(connection, delivery.lease.batch_id)
        assert batch.proof is not None
        leases.refreeze(connection, delivery.lease, rejected={8: ["refused"]}, proof=batch.proof)

    assert isinstance(deliver(delivery), Split)
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def late_insert(stores: Stores) -> Callable[[], None]:
    """Prepare an insert of an earlier attempt on the only batch, to arrive later."""
    publish(stores.engine, 8)
    batch_id = let_be_too_large(stores)
    events = extract_events(stores.engine, batch_id, seconds=10)
    return lambda: insert(stores, as_arrow(events, 0), Lease(batch_id, 3, "late"))


def test_a_late_insert_is_refused_after_the_split(stores: Stores) -> None:
    """What an earlier attempt sent and what arrives now is refused by the fence, before and after the halves went."""
    arrive = late_insert(stores)
    assert isinstance(deliver(split_attempt(stores)), Split)

    with pytest.raises(FencedError):
        arrive()
    relay(stores, until_empty=True)
    with pytest.raises(FencedError):
        arrive()
    assert_each_exactly_once(stores.engine, stores.client)


def test_without_the_fence_a_late_insert_would_double(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the fence refuses it: with none written the same insert is taken, beside the halves."""
    monkeypatch.setattr(load, "raise_fence", lambda *_: None)
    arrive = late_insert(stores)
    assert isinstance(deliver(split_attempt(stores)), Split)
    relay(stores, until_empty=True)

    arrive()

    with pytest.raises(AssertionError, match="8 events arrived twice"):
        assert_each_exactly_once(stores.engine, stores.client)


def test_an_instance_with_the_same_batch_is_refused(stores: Stores) -> None:
    """A copy of the ledger has the batch too and draws attempts of its own: none comes near that of the split."""
    publish(stores.engine, 8)
    batch_id = let_be_too_large(stores)
    events = extract_events(stores.engine, batch_id, seconds=10)
    delivery = split_attempt(stores)
    assert isinstance(deliver(delivery), Split)

    lease = Lease(batch_id, 900_000, "copy")
    with pytest.raises(FencedError):
        insert(stores, as_arrow(events, 0), lease)
    relay(stores, until_empty=True)
    assert delivery.lease.attempt == leases.SPLIT_ATTEMPTS + 4
    assert_each_exactly_once(stores.engine, stores.client)


def test_of_two_workers_one_splits(stores: Stores) -> None:
    """One that was overtaken between its look and its write changes nothing."""
    publish(stores.engine, 8)
    let_be_too_large(stores)
    first = split_attempt(stores)
    first.validate()
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET lease_until = clock_timestamp()"))
    second = start_unrequested(stores, first.lease.batch_id)

    with pytest.raises(LeaseLostError):
        deliver(first)
    untouched = [batch.status for batch in batches_of(stores)]
    assert isinstance(deliver(second), Split)
    relay(stores, until_empty=True)

    assert untouched == [BatchStatus.DELIVERING]
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_split_whose_commit_was_not_answered_is_found_done(stores: Stores) -> None:
    """The same attempt looks again, as a step of Dagster does that is tried again, and ends well."""
    publish(stores.engine, 8)
    let_be_too_large(stores)
    delivery = split_attempt(stores)

    def lose(point: Point) -> None:
        if point == Point.SPLIT:
            raise InDoubtError("The connection broke.")

    end = listen(lose)
    with pytest.raises(InDoubtError):
        delivery.load()
    end()

    assert isinstance(delivery.load(), Split)
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_run_by_hand_splits_too(stores: Stores) -> None:
    """It draws its attempt itself, and above all others as well."""
    publish(stores.engine, 8)
    batch_id = let_be_too_large(stores)

    assert isinstance(deliver(start_unrequested(stores, batch_id)), Split)
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def test_an_attempt_of_a_usual_number_splits_nothing(stores: Stores) -> None:
    """The release before has drawn it; a copy of the ledger may have one as high on its way."""
    publish(stores.engine, 8)
    batch_id = let_be_too_large(stores)
    move_by_hand(stores.engine, "UPDATE outbox.batch SET status = 'requested', attempt = 4, lease_until = now()")

    deliver(start_requested(stores, batch_id, 4))

    assert [batch.status for batch in batches_of(stores)] == [BatchStatus.PROCESSED]
    assert_each_exactly_once(stores.engine, stores.client)


def test_an_insert_that_runs_holds_the_split_up(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """What began before the fence may still write: the attempt fails in doubt, and a later one looks again."""
    publish(stores.engine, 8)
    let_be_too_large(stores)
    delivery = split_attempt(stores)
    monkeypatch.setattr(load, "seconds_of_insert", lambda *_, **__: 5.0)

    with pytest.raises(InDoubtError, match="still runs in ClickHouse"):
        deliver(delivery)
    end_failed(delivery, InDoubtError("It still runs."))
    (batch,) = batches_of(stores)
    monkeypatch.undo()
    recover(stores)

    assert (batch.status, batch.memory_failures) == (BatchStatus.FAILED, 3)
    assert_each_exactly_once(stores.engine, stores.client)


def test_cuts_of_former_positions_take_half(stores: Stores) -> None:
    """Half of the events and bytes that the batch had, and half of that once a half was split; new events are free."""
    split(stores, 8)
    halves = cut_batches(stores.engine, stores.settings, limit=1).batches
    move_by_hand(
        stores.engine,
        "UPDATE outbox.batch SET status = 'failed', attempt = 3, memory_failures = 3, lasting = interval '0',"
        " next_attempt_at = now() WHERE status = 'cut'",
    )
    assert isinstance(deliver(split_attempt(stores)), Split)
    publish(stores.engine, 6)
    rest = cut_batches(stores.engine, stores.settings, limit=10).batches

    assert [half.event_count for half in halves] == [4]
    # The last one meets the fifth to eighth of the first batch's events, and ends at half of that.
    assert [batch.event_count for batch in rest] == [2, 2, 4, 6]
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def test_bytes_are_halved_too(stores: Stores) -> None:
    """One large event beside small ones: no half has more than half of the bytes, but for one event alone."""
    publish(stores.engine, 3)
    publish(stores.engine, 1, context=LARGE)
    publish(stores.engine, 4)
    batch_id = let_be_too_large(stores)
    assert isinstance(deliver(split_attempt(stores)), Split)

    cut = cut_batches(stores.engine, stores.settings, limit=10).batches

    with ledger_transaction(stores.engine) as connection:
        total = leases.read_batch(connection, batch_id).context_bytes
    assert [batch.event_count for batch in cut] == [3, 1, 4]
    assert all(batch.context_bytes <= total / 2 + 1 or batch.event_count == 1 for batch in cut)


def test_every_procedure_knows_a_split_batch(stores: Stores) -> None:
    """Comparison, replay, resume, prune, adoption, completeness, status, metrics, trace and doctor."""
    batch_id, event_ids = split(stores)
    waiting = read_status(stores.engine)
    instance = trace_event(stores.engine, stores.settings, event_ids[0])
    breaches = []
    with ledger_transaction(stores.engine) as connection:
        breaches += read_ledger_breaches(connection)
    relay(stores, until_empty=True)
    found = reconcile(stores)
    (outcome,) = list(replay(stores, choose(stores, Choice(batch_id=batch_id)), reload=True))
    everything = choose(stores, Choice())
    record_completeness(stores)
    told = stores.client.rows(
        "SELECT event_count, batch_count FROM {completeness:Identifier} FINAL WHERE batch_count > 0"
    )
    metrics, _ = metrics_text(stores.settings)
    split_check = {check.name: check for check in examine(stores.settings)}["split batches"]
    with stores.engine.begin() as connection:
        breaches += read_ledger_breaches(connection)
        status, former = connection.execute(
            text("SELECT status, former_positions::text FROM outbox.batch WHERE former_positions IS NOT NULL")
        ).one()

    assert (waiting.pending, waiting.in_flight, waiting.parked, waiting.split_batches) == (8, 0, 0, 1)
    assert waiting.last_processed_at is None
    assert instance.status == "pending"
    assert any("batch split" in station.what and station.batch_id == batch_id for station in instance.stations)
    assert breaches == []
    assert found.is_clean
    assert (found.days[0].batches, found.days[0].pruned_batches, found.days[0].expected_rows) == (2, 0, 8)
    assert (outcome.outcome, outcome.detail) == (
        Outcome.LEFT_ALONE,
        "it was split; its events are delivered in smaller batches",
    )
    assert batch_id not in {batch.batch_id for batch in everything}
    assert [(row["event_count"], row["batch_count"]) for row in told] == [(8, 2)]
    assert "outbox_split_batches_total 1.0" in metrics
    assert "outbox_processed_batches_total 2.0" in metrics
    assert "outbox_attempts_total 6.0" in metrics
    assert 'status="split"' not in metrics
    assert split_check.is_warning
    assert "8 events" in split_check.message
    assert (status, former) == ("processed", "{[1,9)}")
    with pytest.raises(ConfigurationError, match="was split: its events are delivered in smaller batches"):
        resume(stores.engine, batch_id, lock_timeout_seconds=5)
    assert adopt(stores).was_own
    assert prune(stores).batches == 0
    assert_each_exactly_once(stores.engine, stores.client)


def test_rows_of_a_split_batch_are_named(stores: Stores) -> None:
    """None may be there: the comparison says how to remove what stands under another batch too, and nothing else."""
    batch_id, _ = split(stores)
    relay(stores, until_empty=True)
    copy_rows(stores.client, batch_id, "position = 1", replaced="{batch_id:UUID} AS batch_id")
    other = "{batch_id:UUID} AS batch_id, generateUUIDv4() AS event_id, position + 5000 AS position"
    copy_rows(stores.client, batch_id, "position = 2", replaced=other)

    found = reconcile(stores)
    left = repair(stores, found).left

    assert [item.batch.batch_id for item in found.differences] == [batch_id]
    assert len(left) == 1
    removal = left[0].rpartition(": ")[2].rstrip(".").replace("event_log", "{table:Identifier}")
    change(stores.client, removal, batch_id)
    (again,) = reconcile(stores).differences
    assert (again.found, "leave these rows" in again.sentence, "DELETE" in again.sentence) == (1, True, False)


def test_a_release_that_does_not_know_it_takes_it_for_done(stores: Stores) -> None:
    """To the release before, the row is a processed and pruned batch of no event, which is never sent again."""
    batch_id, _ = split(stores)
    with stores.engine.begin() as connection:
        row = connection.execute(
            text(
                "SELECT status, positions::text, accepted_count, rejected_count, proof ->> 'row_count' AS rows,"
                " pruned_at IS NOT NULL AS is_pruned, processed_at < now() - interval '1 day' AS is_old"
                " FROM outbox.batch WHERE batch_id = :batch_id"
            ),
            {"batch_id": batch_id},
        ).one()
        with pytest.raises(IntegrityError, match="batch_stays_processed_when_pruned"), connection.begin_nested():
            connection.execute(text("UPDATE outbox.batch SET status = 'failed'"))

    assert tuple(row) == ("processed", "{}", 0, 0, "0", True, True)
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)
