"""A delivery ends at exactly the ledger's rows in ClickHouse, whatever was there before, or it marks nothing."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import text
from sqlalchemy.orm import Session

from outbox_pipeline import publish_event
from outbox_pipeline.batches import BatchStatus, Lease
from outbox_pipeline.clickhouse import load
from outbox_pipeline.clickhouse.deadline import read_deadline
from outbox_pipeline.errors import BatchDataError, FencedError, LeaseLostError, ProofError, TransientError
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.postgres.leases import read_batch
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_unrequested
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import start
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.owners import identity_of


def again(stores: Stores, delivery: Delivery) -> Delivery:
    """Fail the attempt and start the next one."""
    end_failed(delivery, RuntimeError("killed"))
    return start_unrequested(stores, delivery.lease.batch_id)


def insert(stores: Stores, delivery: Delivery, *, generation: int, attempt: int) -> None:
    """Send the batch of *delivery* as some attempt would."""
    batch_id = delivery.lease.batch_id
    body = load.as_arrow(extract_events(stores.engine, batch_id), generation)
    lease = replace(delivery.lease, attempt=attempt)
    not_after = read_deadline(stores.client, stores.settings.lease_seconds)
    load.insert_generation(stores.client, body, lease=lease, identity=identity_of(stores), not_after=not_after)


@pytest.fixture
def delivery(stores: Stores) -> Iterator[Delivery]:
    """The first attempt on a batch of 100 events."""
    publish(stores.engine, 100)
    delivery = start(stores)
    yield delivery
    delivery.close()


def rows(stores: Stores) -> list[dict[str, object]]:
    """Return the event log."""
    return stores.client.rows("SELECT * FROM {table:Identifier} ORDER BY position")


def generation(stores: Stores, delivery: Delivery) -> int:
    """Return the batch's generation in the ledger."""
    with ledger_transaction(stores.engine) as connection:
        return read_batch(connection, delivery.lease.batch_id).generation


def test_each_column_arrives_as_published(stores: Stores) -> None:
    """Text is kept character for character and times to the microsecond."""
    context = '{"b": 1.10, "a": 1e400, "big": 123456789012345678901234567890, "u": "\\u0000 \\ud800 é🎉", "a": 2}'
    with stores.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO outbox.event"
                " (event_type, event_date_time, environment, event_context, metadata_version, trace_context)"
                " VALUES (:type, '2026-02-03 04:05:06.789012+05', 'prüfung', CAST(:context AS json), 7, '00-ab-cd-01')"
            ),
            {"type": "tab\tquote'\"\\", "context": context},
        )

    relay(stores, until_empty=True)

    (row,) = rows(stores)
    assert (row["event_type"], row["environment"]) == ("tab\tquote'\"\\", "prüfung")
    assert row["event_context"] == context
    assert row["event_date_time"] == datetime(2026, 2, 2, 23, 5, 6, 789012, tzinfo=UTC)
    assert (row["metadata_version"], row["trace_context"], row["position"]) == (7, "00-ab-cd-01", 1)
    assert_each_exactly_once(stores.engine, stores.client)


def test_trace_of_the_publisher_arrives(stores: Stores) -> None:
    """The span an event was published in is in ClickHouse beside it; an event without one has an empty text."""
    tracer = TracerProvider().get_tracer("tests")
    with Session(stores.engine) as session, session.begin():
        with tracer.start_as_current_span("checkout") as span:
            publish_event(session, {}, event_type="traced")
        publish_event(session, {}, event_type="untraced")

    relay(stores, until_empty=True)

    traced, untraced = rows(stores)
    context = span.get_span_context()
    assert str(traced["trace_context"]).startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")
    assert untraced["trace_context"] == ""


def test_bad_events_are_held_and_good_ones_delivered(stores: Stores) -> None:
    """One bad event never blocks its batch; it waits in quarantine with its reasons."""
    publish(stores.engine, 3)
    publish(stores.engine, 1, event_type="", context="[]")

    result = relay(stores, until_empty=True)

    assert (result.delivered_count, result.quarantined_count, result.failures) == (3, 1, ())
    with stores.engine.begin() as connection:
        reasons = connection.scalar(text("SELECT reasons FROM outbox.quarantined_event"))
    assert reasons == ["event_type_empty", "context_not_object"]
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_batch_of_only_bad_events_is_processed(stores: Stores) -> None:
    """When nothing is left to send, the empty row set is proven and the batch is done."""
    publish(stores.engine, 5, context="[]")

    result = relay(stores, until_empty=True)

    assert (result.delivered_count, result.quarantined_count, result.failures) == (0, 5, ())


def test_the_first_attempt_sends_once(stores: Stores, delivery: Delivery) -> None:
    """Without trouble a batch is one insert under generation 0."""
    marked = deliver(delivery)

    assert (marked.accepted_count, generation(stores, delivery)) == (100, 0)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_lost_answer_is_found_by_looking(stores: Stores, delivery: Delivery) -> None:
    """An attempt that died after the insert is completed by the next one without sending anything."""
    delivery.validate()
    delivery._send(delivery.batch(), 0)

    loaded = (second := again(stores, delivery)).load()
    second.mark()

    assert loaded.was_there
    assert_each_exactly_once(stores.engine, stores.client)


def test_half_a_batch_is_completed(stores: Stores, delivery: Delivery) -> None:
    """Rows that went missing are restored by a new generation that carries all of them."""
    delivery.load()
    stores.client.run("DELETE FROM {table:Identifier} WHERE position % 2 = 0", settings={"mutations_sync": 2})

    deliver(second := again(stores, delivery))

    assert generation(stores, second) == 1
    assert {row["generation"] for row in rows(stores)} == {1}
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_doubled_batch_is_reduced(stores: Stores, delivery: Delivery) -> None:
    """Rows that somebody copied are replaced by exactly the batch's rows."""
    delivery.load()
    stores.client.run(
        "INSERT INTO {table:Identifier} SELECT * FROM {table:Identifier}", settings={"deduplicate_insert": "disable"}
    )

    deliver(again(stores, delivery))

    assert_each_exactly_once(stores.engine, stores.client)


@pytest.mark.parametrize(
    "change",
    [
        "event_context = concat(event_context, ' ')",
        "event_context = '{\"n\": 2}'",
        "position = position + 1000",
    ],
)
def test_an_altered_row_is_noticed(stores: Stores, delivery: Delivery, change: str) -> None:
    """The proof covers contents and positions, not only ids."""
    delivery.load()
    stores.client.run(
        f"ALTER TABLE {{table:Identifier}} UPDATE {change} WHERE position = 50", settings={"mutations_sync": 2}
    )

    deliver(again(stores, delivery))

    assert {row["event_context"] for row in rows(stores)} == {'{"n": 1}'}
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_used_token_without_rows_does_not_pass_for_a_delivery(stores: Stores, delivery: Delivery) -> None:
    """ClickHouse answering OK is not the proof: a token that was used up leads to the next generation."""
    delivery.load()
    stores.client.run("DELETE FROM {table:Identifier} WHERE 1", settings={"mutations_sync": 2})

    deliver(second := again(stores, delivery))

    assert generation(stores, second) == 1
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_crash_alone_does_not_raise_the_generation(stores: Stores, delivery: Delivery) -> None:
    """A retry sends the same bytes under the same token, so the first request arriving late is dropped."""
    delivery.validate()
    deliver(second := again(stores, delivery))

    insert(stores, delivery, generation=0, attempt=2)

    assert generation(stores, second) == 0
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_lost_answer_is_found_when_the_window_is_overrun(stores: Stores, delivery: Delivery) -> None:
    """When ClickHouse has forgotten the token, looking first is what keeps the batch from being sent twice."""
    stores.client.run("ALTER TABLE {table:Identifier} MODIFY SETTING non_replicated_deduplication_window = 1")
    delivery.validate()
    delivery._send(delivery.batch(), 0)
    publish(stores.engine, 1)
    deliver(start(stores))
    end_failed(delivery, RuntimeError("killed"))

    second = start_unrequested(stores, delivery.lease.batch_id)
    loaded = second.load()
    second.mark()

    assert (loaded.was_there, loaded.sent_bytes, loaded.generation) == (True, 0, 0)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_reload_does_not_send_what_was_encoded_before(stores: Stores, delivery: Delivery) -> None:
    """Each row names its generation: a body of the old one under the new token would have to be sent once more."""
    delivery.prepare()
    loaded = delivery.load(reload=True)

    assert loaded.generation == 1
    assert {row["generation"] for row in rows(stores)} == {1}


def test_a_batch_sent_twice_past_the_window_is_reduced(stores: Stores, delivery: Delivery) -> None:
    """Should a forgotten token let the rows in twice, the proof shows it and the next generation replaces them."""
    stores.client.run("ALTER TABLE {table:Identifier} MODIFY SETTING non_replicated_deduplication_window = 1")
    delivery.validate()
    delivery._send(delivery.batch(), 0)
    publish(stores.engine, 1)
    deliver(start(stores))
    delivery._send(delivery.batch(), 0)
    assert len(rows(stores)) == 201

    deliver(second := again(stores, delivery))

    assert generation(stores, second) == 1
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_frozen_delete_of_an_old_run_cannot_touch_newer_rows(stores: Stores, delivery: Delivery) -> None:
    """The repair of generation 1 deletes below it; arriving after generation 2 it finds nothing."""
    delivery.load()
    second = again(stores, delivery)
    second.load(reload=True)
    third = again(stores, second)
    third.load(reload=True)
    third.mark()

    load.delete_older_generations(stores.client, delivery.batch(), 1)

    assert_each_exactly_once(stores.engine, stores.client)


def test_a_deploy_between_attempts_changes_nothing(stores: Stores, delivery: Delivery) -> None:
    """What the first attempt rejected is what the second rejects, though the rules have changed."""
    delivery.validate()
    end_failed(delivery, RuntimeError("killed"))
    stricter = stores.settings.model_copy(update={"context_max_bytes": 1})

    second = start_unrequested(replace(stores, settings=stricter), delivery.lease.batch_id)
    validated = second.validate()
    marked = deliver(second)

    assert validated.was_frozen
    assert (marked.accepted_count, marked.quarantined_count) == (100, 0)


def test_marking_never_trusts(stores: Stores, delivery: Delivery) -> None:
    """A process that only marks asks ClickHouse first."""
    delivery.validate()
    second = again(stores, delivery)

    with pytest.raises(ProofError, match="row_count 0 instead of 100"):
        second.mark()
    second.close()


def test_a_run_that_only_marks_refuses_what_is_still_on_its_way(stores: Stores, delivery: Delivery) -> None:
    """Nothing that the attempt before sent can arrive after the mark, not even past the deduplication window."""
    delivery.load()
    again(stores, delivery).mark()

    with pytest.raises(FencedError, match="a later attempt on this batch has begun"):
        insert(stores, delivery, generation=7, attempt=1)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_run_that_lost_its_batch_stops_before_it_sends(stores: Stores, delivery: Delivery) -> None:
    """Once a heartbeat has found the lease gone, nothing more is sent or marked."""
    delivery.validate()
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET attempt = 9"))
    delivery._heartbeat._thread.join(timeout=5)
    assert not delivery._heartbeat._thread.is_alive(), "the heartbeat goes on without its lease"

    with pytest.raises(LeaseLostError, match="Nothing was written"):
        delivery.load()
    assert rows(stores) == []


def test_rows_deleted_by_hand_are_named(stores: Stores, delivery: Delivery) -> None:
    """A batch whose events are gone from PostgreSQL fails with the counts; it is never delivered short."""
    with stores.engine.begin() as connection:
        connection.execute(text("ALTER TABLE outbox.event DISABLE TRIGGER USER"))
        connection.execute(text("DELETE FROM outbox.event WHERE position = 7"))

    with pytest.raises(BatchDataError, match="99 of the 100 events"):
        delivery.extract()


def test_a_failure_is_in_the_ledger(stores: Stores, delivery: Delivery) -> None:
    """A failed attempt leaves its error, without secrets, and the time of the next one."""
    status = end_failed(delivery, TransientError("cannot reach http://user:secret@host:8123"))

    with ledger_transaction(stores.engine) as connection:
        batch = read_batch(connection, delivery.lease.batch_id)
    assert status == batch.status == BatchStatus.FAILED
    assert batch.last_error == "cannot reach http://user:***@host:8123"


def test_a_heartbeat_keeps_the_lease(stores: Stores, delivery: Delivery) -> None:
    """While its process works a batch is not requested again, however long that takes."""
    lease: Lease = delivery.lease
    with stores.engine.begin() as connection:
        before = connection.scalar(text("SELECT lease_until FROM outbox.batch"))
    renewed = _wait_for_renewal(stores, before)

    assert renewed
    assert request_batches(stores.engine, stores.settings, limit=1) == []
    assert delivery.batch().attempt == lease.attempt


def _wait_for_renewal(stores: Stores, before: datetime) -> bool:
    statement = text("SELECT lease_until > :before, pg_sleep(0.05) FROM outbox.batch")
    for _ in range(200):
        with stores.engine.begin() as connection:
            if connection.scalar(statement, {"before": before}):
                return True
    return False


def test_a_request_frozen_past_the_window_is_refused(stores: Stores, delivery: Delivery) -> None:
    """An insert of attempt 1 that arrives after attempt 2 began is refused, though nobody remembers its token."""
    delivery.validate()
    deliver(again(stores, delivery))

    with pytest.raises(FencedError, match="a later attempt on this batch has begun"):
        insert(stores, delivery, generation=7, attempt=1)

    assert_each_exactly_once(stores.engine, stores.client)


def test_the_first_attempt_needs_no_fence(stores: Stores, delivery: Delivery) -> None:
    """Without a retry the fence table stays empty."""
    deliver(delivery)

    assert stores.client.rows("SELECT count() AS n FROM {fence:Identifier}") == [{"n": 0}]
