"""The proof: both sides add up the same, no altered value is missed, and a batch keeps its version."""

import random
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from outbox_pipeline import publish_event
from outbox_pipeline.batches import NEWER_PROOF, Batch, BatchStatus
from outbox_pipeline.clickhouse.proof import proof_in_clickhouse, proof_of_table
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.event_schema import PROOF_VERSION, proved_columns, sent_columns
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.examine import COLUMNS
from outbox_pipeline.operations.reconcile.repair import repair
from outbox_pipeline.operations.replay import Outcome, rechecks_due, replay
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.leases import resume_parked
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested, start_unrequested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.delivery import Delivery, proof_differences
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import deliver_batches, read_all
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.moves import move_by_hand
from tests.fixtures.proofs import (
    Odd,
    as_of_version_1,
    batch_of,
    replace_values,
    stored_versions,
    swapped,
    table_of,
    write,
)
from tests.fixtures.snapshots import delivered_once

TEXTS = ("", " ", "a", "\0", "a\0b", "é🎉 \U0010ffff", "\ufeff", "\x7f", "\\N", "x" * 500)
#: Microseconds since 1970 of 1900 and 2299, the ends of what ClickHouse holds, and around 1970.
TIMES = (-2_208_988_800_000_000, -1_000_001, -1, 0, 1, 1_700_000_000_123_456, 10_413_791_999_999_999)
NUMBERS = (0, 1, 2**31, 2**53 + 1, 2**63 - 1)

#: What each column that is proved becomes when somebody alters it.
ALTERED = {
    "event_type": "'other'",
    "event_date_time": "event_date_time + toIntervalMicrosecond(1)",
    "environment": "''",
    "event_context": "concat(event_context, ' ')",
    "metadata_version": "metadata_version + bitShiftLeft(toUInt64(1), 63)",
    "recorded_at": "recorded_at - toIntervalMicrosecond(1)",
    "trace_context": "'00-ab-cd-01'",
}


def odd_events(count: int, numbers: random.Random) -> list[Odd]:
    """Return events with values from the edges, few different types and many different contexts."""
    return [
        Odd(
            UUID(int=numbers.getrandbits(128)),
            numbers.choice((numbers.getrandbits(62), numbers.randrange(count))),
            numbers.choice(TEXTS),
            numbers.choice(TIMES),
            numbers.choice(TEXTS),
            numbers.choice((numbers.choice(TEXTS), "y" * numbers.randrange(4_000))),
            numbers.choice(NUMBERS),
            numbers.choice(TIMES),
            numbers.choice((None, *TEXTS)),
        )
        for _ in range(count)
    ]


@delivered_once
def deliver_pairs(stores: Stores, count: int) -> list[Batch]:
    """Deliver so many batches of two events that have nothing in common, and return the batches."""
    with Session(stores.engine) as session, session.begin():
        for number in range(1, 2 * count + 1):
            publish_event(
                session,
                {"n": number},
                event_type=f"type_{number}",
                environment=f"place_{number}",
                metadata_version=number,
                trace_context=f"00-{number:032x}-{number:016x}-01",
            )
    relay(replace(stores, settings=stores.settings.model_copy(update={"batch_max_events": 2})), until_empty=True)
    return read_all(stores.engine)


def statuses(stores: Stores) -> list[tuple[BatchStatus, int, str | None]]:
    """Return status, counted failures and last error of each batch."""
    return [(batch.status, batch.failures, batch.last_error) for batch in read_all(stores.engine)]


def begin(stores: Stores) -> Delivery:
    """Cut what is pending and start the first attempt on it."""
    (cut,) = cut_batches(stores.engine, stores.settings, limit=1).batches
    return start_unrequested(stores, cut.batch_id)


@pytest.mark.parametrize("count", [0, 1, 3_000])
def test_both_sides_add_up_the_same(stores: Stores, count: int) -> None:
    """Whatever the values are, what is expected of a table of events is what ClickHouse shows of its rows."""
    events, batch_id = table_of(odd_events(count, random.Random(count))), uuid4()
    write(stores.client, events, batch_id)

    found, of_other_generation = proof_in_clickhouse(stores.client, batch_of(batch_id), generation=0)

    assert found == proof_of_table(events)
    assert of_other_generation == 0
    assert found.columns.keys() == {column.name for column in proved_columns(PROOF_VERSION)}


def test_proofs_of_parts_add_up_to_the_proof_of_the_whole(stores: Stores) -> None:
    """A batch that is asked for in several windows shows the same sums as in one."""
    numbers = random.Random(7)
    events = [Odd(uuid4(), position, numbers.choice(TEXTS), event_context=f"{position}") for position in range(3_000)]
    foreign = tuple((position, position + 1) for position in range(1, 3_000, 2))
    batch_id = uuid4()
    write(stores.client, table_of(events), batch_id)

    found, _ = proof_in_clickhouse(stores.client, batch_of(batch_id, foreign=foreign), generation=0)

    assert found == proof_of_table(table_of(events[::2]))
    parts = [proof_of_table(table_of(part)) for part in (events[:1_000:2], events[1_000::2])]
    assert found == parts[0].plus(parts[1])


def test_no_altered_column_is_missed(stores: Stores) -> None:
    """One value that was altered in ClickHouse is found by reconcile and by a proof, which say in which column."""
    batches = dict(zip(ALTERED, deliver_pairs(stores, len(ALTERED)), strict=True))
    positions = {column: batch.last_position for column, batch in batches.items()}
    values = {column: f"if(position = {at}, {ALTERED[column]}, {column})" for column, at in positions.items()}
    replace_values(stores.client, values, where=f"position IN {tuple(positions.values())}")

    said = {column: proof_differences(stores, batch, generation=0) for column, batch in batches.items()}
    found = reconcile(stores)

    assert {column: words.rpartition(", ")[2] for column, words in said.items()} == {
        column: f"{column} altered" for column in ALTERED
    }
    assert {item.batch.batch_id: item.altered for item in found.differences} == {
        batch.batch_id: COLUMNS[column] for column, batch in batches.items()
    }
    assert found.days[0].expected_checksum != found.days[0].found_checksum


def test_no_swap_of_two_values_is_missed(stores: Stores) -> None:
    """Two rows of a batch that have swapped their values add up to something else, in each column."""
    columns = [column.name for column in proved_columns(PROOF_VERSION)]
    batches = dict(zip(columns, deliver_pairs(stores, len(columns)), strict=True))
    replace_values(stores.client, {column: swapped(batch.batch_id, column) for column, batch in batches.items()})

    said = {column: proof_differences(stores, batch, generation=0) for column, batch in batches.items()}
    found = reconcile(stores)

    assert said == {column: f"{column} altered" for column in columns}
    assert {item.batch.batch_id: item.altered for item in found.differences} == {
        batch.batch_id: COLUMNS[column] for column, batch in batches.items()
    }


def _frozen(stores: Stores) -> None:
    (delivery := begin(stores)).validate()
    end_failed(delivery, RuntimeError("killed"))


def _sent(stores: Stores) -> None:
    (delivery := begin(stores)).load()
    end_failed(delivery, RuntimeError("killed"))


def _half_sent(stores: Stores) -> None:
    _sent(stores)
    batch = read_all(stores.engine)[-1]
    statement = "DELETE FROM {table:Identifier} WHERE batch_id = {batch_id:UUID} AND position % 2 = 0"
    stores.client.run(statement, {"batch_id": str(batch.batch_id)}, settings={"lightweight_deletes_sync": 2})


def _parked(stores: Stores) -> None:
    _half_sent(stores)
    statement = "UPDATE outbox.batch SET status = 'parked', next_attempt_at = NULL WHERE batch_id = :batch_id"
    move_by_hand(stores.engine, statement, {"batch_id": read_all(stores.engine)[-1].batch_id})


def test_batches_of_before_are_proved_as_they_were_frozen(stores: Stores) -> None:
    """A ledger of before, with batches at every stage, is delivered, replayed and reconciled by its own proofs."""
    stages: list[Callable[[Stores], object]] = [relay, _frozen, _sent, _half_sent, _parked]
    for stage in stages:
        publish(stores.engine, 10)
        publish(stores.engine, 1, context="[]")
        stage(stores)
    as_of_version_1(stores.engine)

    with ledger_transaction(stores.engine) as connection:
        resume_parked(connection)
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET next_attempt_at = now() WHERE status = 'failed'"))
    result = relay(stores, until_empty=True)

    assert (result.failures, {status for status, _, _ in statuses(stores)}) == ((), {BatchStatus.PROCESSED})
    assert stored_versions(stores.engine) == [1] * len(stages)
    assert reconcile(stores, by_type=True).is_clean
    assert_each_exactly_once(stores.engine, stores.client)

    proven = [item.outcome for item in replay(stores, read_all(stores.engine))]
    (sent_again,) = replay(stores, read_all(stores.engine)[:1], reload=True)

    assert (proven, sent_again.outcome) == ([Outcome.PROVEN] * len(stages), Outcome.REDELIVERED)
    assert stored_versions(stores.engine) == [1] * len(stages)
    assert reconcile(stores, by_type=True).is_clean
    assert_each_exactly_once(stores.engine, stores.client)


def test_days_may_hold_batches_of_both_versions(stores: Stores) -> None:
    """A day with batches of before and of now agrees on both sides, and an altered value of either is told."""
    old = deliver_batches(stores, (10, 10))
    as_of_version_1(stores.engine)
    new = deliver_batches(stores, (10, 10))[2:]

    (day,) = reconcile(stores).days
    assert (day.is_clean, day.batches) == (True, 4)
    assert day.expected_checksum == day.found_checksum

    first = (old[1].first_position, new[1].first_position)
    replace_values(stores.client, {"event_context": "'{}'"}, where=f"position IN {first}")
    found = reconcile(stores)
    repair(stores, found)

    assert [(item.batch.batch_id, item.altered) for item in found.differences] == [
        (old[1].batch_id, "contexts"),
        (new[1].batch_id, "contexts"),
    ]
    assert stored_versions(stores.engine) == [1, 1, 2, 2]
    assert reconcile(stores).is_clean
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_batch_that_is_frozen_again_gets_the_new_proof(stores: Stores) -> None:
    """When ClickHouse refuses events of a batch of before, what is left of it is frozen as of now."""
    publish(stores.engine, 10)
    publish(stores.engine, 1, event_type="poison")
    _frozen(stores)
    as_of_version_1(stores.engine)
    stores.client.run("ALTER TABLE {table:Identifier} ADD CONSTRAINT no_poison CHECK event_type != 'poison'")

    (delivery := start_unrequested(stores, read_all(stores.engine)[0].batch_id)).load()
    delivery.mark()

    assert stored_versions(stores.engine) == [PROOF_VERSION]
    assert reconcile(stores).is_clean
    assert_each_exactly_once(stores.engine, stores.client)


def _frozen_by_newer(stores: Stores, batch: Batch) -> None:
    with stores.engine.begin() as connection:
        statement = (
            'UPDATE outbox.batch SET proof = proof || \'{"version": 3, "new_sum": 1}\' WHERE batch_id = :batch_id'
        )
        connection.execute(text(statement), {"batch_id": batch.batch_id})
        connection.execute(text("UPDATE outbox.batch SET next_attempt_at = now() WHERE status = 'failed'"))


def test_a_batch_of_a_newer_release_is_left_to_it(stores: Stores) -> None:
    """A proof that cannot be read holds no other batch up; its own is told to update, not counted and not parked."""
    publish(stores.engine, 10)
    _frozen(stores)
    (batch,) = read_all(stores.engine)
    _frozen_by_newer(stores, batch)
    publish(stores.engine, 5)

    results = [relay(stores, until_empty=True) for _ in range(3)]
    with pytest.raises(ConfigurationError, match="update outbox-pipeline here"):
        start_unrequested(stores, batch.batch_id)

    assert [result.delivered_count for result in results] == [5, 0, 0]
    assert statuses(stores) == [(BatchStatus.FAILED, batch.failures, NEWER_PROOF), (BatchStatus.PROCESSED, 0, None)]
    assert read_all(stores.engine)[0].attempt == batch.attempt


def test_a_requested_batch_of_a_newer_release_is_not_taken(stores: Stores) -> None:
    """A run that a process of the newer release has asked for stops with the sentence before it takes the lease."""
    publish(stores.engine, 10)
    _frozen(stores)
    (batch,) = read_all(stores.engine)
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET next_attempt_at = now()"))
    (request,) = request_batches(stores.engine, stores.settings, limit=1)
    _frozen_by_newer(stores, batch)

    with pytest.raises(ConfigurationError, match="update outbox-pipeline here"):
        start_requested(stores, request.batch_id, request.attempt)

    assert statuses(stores)[0][:2] == (BatchStatus.REQUESTED, batch.failures)


def test_a_processed_batch_of_a_newer_release_is_not_judged(stores: Stores) -> None:
    """Nothing is compared by a proof that cannot be read: commands say what to do, the second look leaves it out."""
    (batch,) = deliver_batches(stores, (10,))
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET attempt = 2, processed_at = now() - interval '1 day'"))
        connection.execute(text("UPDATE outbox.batch SET proved_at = processed_at"))
    assert len(rechecks_due(stores)) == 1
    _frozen_by_newer(stores, batch)

    with pytest.raises(ConfigurationError, match="update outbox-pipeline here"):
        reconcile(stores)
    with pytest.raises(ConfigurationError, match="update outbox-pipeline here"):
        list(replay(stores, [batch], reload=True))

    assert rechecks_due(stores) == []
    assert statuses(stores) == [(BatchStatus.PROCESSED, 0, None)]


def test_a_batch_is_sent_with_the_columns_of_its_proof() -> None:
    """What batches were sent with once they are sent with for ever; a new column comes with a new version."""
    of_version_1 = {
        *("event_type", "event_date_time", "environment", "event_context", "metadata_version", "event_id"),
        *("batch_id", "generation", "position", "recorded_at", "trace_context"),
    }

    assert {version: {column.name for column in sent_columns(version)} for version in (1, 2)} == {
        1: of_version_1,
        2: of_version_1,
    }
    assert [column.name for column in proved_columns(1)] == []
    assert {column.name for column in proved_columns(2)} == of_version_1 - {"event_id", "batch_id", "generation"}
