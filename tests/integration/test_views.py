"""A view behind the event log that throws is owed the rows until it has taken them, and nothing is called delivered."""

from dataclasses import dataclass, replace
from uuid import UUID

import pytest
from sqlalchemy import text

from outbox_pipeline.batches import Batch, BatchStatus
from outbox_pipeline.clickhouse.client import clickhouse_client
from outbox_pipeline.clickhouse.completeness import read_delivered
from outbox_pipeline.errors import InDoubtError, ProofError, TransientError, ViewError
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.resume import resume
from outbox_pipeline.postgres import leases
from outbox_pipeline.relay.attempts import end_failed, start_unrequested
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import start
from tests.fixtures.broken_batches import read_all
from tests.fixtures.children import recover
from tests.fixtures.events import (
    assert_each_exactly_once,
    committed_ids,
    delivered_ids,
    publish,
    quarantined_ids,
)
from tests.fixtures.moves import move_by_hand
from tests.fixtures.proxy import FaultyProxy
from tests.fixtures.too_large import starve

_WINDOW = "SETTINGS non_replicated_deduplication_window = 100"
_STRICT = "toUInt32(JSONExtractString(event_context, 'n'))"
_MENDED = "toUInt32OrZero(JSONExtractString(event_context, 'n'))"


@dataclass(frozen=True)
class Fed:
    """A view behind the log and its target, both named by what the view is for."""

    stores: Stores
    name: str

    @classmethod
    def make(
        cls, stores: Stores, name: str, expression: str, *, window: str = _WINDOW, engine: str = "MergeTree"
    ) -> "Fed":
        """Make a target, with a deduplication window unless told otherwise, and the view that fills it."""
        order = "ORDER BY event_id" if engine.endswith("MergeTree") else ""
        stores.client.run(f"CREATE TABLE {name} (event_id UUID, n UInt32) ENGINE = {engine} {order} {window}")
        stores.client.run(
            f"CREATE MATERIALIZED VIEW to_{name} TO {name} AS SELECT event_id, {expression} AS n"
            " FROM {table:Identifier}"
        )
        return cls(stores, name)

    def mend(self) -> None:
        """Let the view take anything."""
        self.stores.client.run(
            f"ALTER TABLE to_{self.name} MODIFY QUERY SELECT event_id, {_MENDED} AS n FROM {{table:Identifier}}"
        )

    def ids(self) -> list[UUID]:
        """Return the ids of the rows that the view has put into its target, doubles included."""
        return sorted(row["event_id"] for row in self.stores.client.rows(f"SELECT event_id FROM {self.name}"))


@pytest.fixture
def strict(stores: Stores) -> Fed:
    """A view that throws at one of the events that are published, and whose target has a window."""
    publish(stores.engine, 3, context='{"n": "1"}')
    publish(stores.engine, 1, context='{"n": "not a number"}')
    publish(stores.engine, 3, context='{"n": "2"}')
    return Fed.make(stores, "strict", _STRICT)


def only_batch(stores: Stores) -> Batch:
    """Return the ledger's only batch."""
    (batch,) = read_all(stores.engine)
    return batch


def refused(stores: Stores) -> Delivery:
    """Begin a delivery and let a view refuse it; its process is gone before it could write its failure."""
    delivery = start(stores)
    with pytest.raises(ViewError):
        deliver(delivery)
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET lease_until = clock_timestamp() - interval '1 s'"))
    return delivery


def relay_until_parked(stores: Stores) -> str:
    """Run the loop until the only batch is parked, and return what it was parked for."""
    for _ in range(10):
        relay(stores)
        batch = only_batch(stores)
        if batch.status == BatchStatus.PARKED:
            assert batch.last_error
            return batch.last_error
        make_due(stores)
    raise AssertionError("the batch was not parked")


def make_due(stores: Stores) -> None:
    """End the backoff of the only batch."""
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET next_attempt_at = clock_timestamp()"))


def assert_nothing_is_called_delivered(stores: Stores) -> None:
    """Check that the ledger calls none of the events processed, nor their day complete."""
    with stores.engine.begin() as connection:
        statuses = set(connection.execute(text("SELECT DISTINCT status FROM outbox.event_status")).scalars())
    assert "processed" not in statuses
    record_completeness(stores)
    assert all(not day.event_count and not day.is_complete for day in read_delivered(stores.client))


def test_a_view_that_was_mended_gets_the_rows(stores: Stores, strict: Fed) -> None:
    """The log had the rows when the view threw; the next attempt sends them to it again, and to no other view twice."""
    other = Fed.make(stores, "other", _MENDED)

    (failure,) = relay(stores).failures
    stood = delivered_ids(stores.client)
    assert_nothing_is_called_delivered(stores)
    strict.mend()
    recover(stores)

    assert ".to_strict behind event_log refused the rows" in failure
    assert "not a number" not in failure
    assert set(stood) == committed_ids(stores.engine)
    assert only_batch(stores).generation == 0
    assert_each_exactly_once(stores.engine, stores.client)
    assert strict.ids() == other.ids() == sorted(committed_ids(stores.engine))


def test_a_view_that_refuses_again_parks_the_batch(stores: Stores, strict: Fed) -> None:
    """Base rows stay, nothing is called delivered, nothing goes to quarantine; each resume sends once more."""
    error = relay_until_parked(stores)
    assert only_batch(stores).attempt == 2
    assert_nothing_is_called_delivered(stores)

    resume(stores.engine, lock_timeout_seconds=5)
    relay_until_parked(stores)
    assert only_batch(stores).attempt == 3
    assert sorted(delivered_ids(stores.client)) == sorted(committed_ids(stores.engine))
    assert (strict.ids(), quarantined_ids(stores.engine)) == ([], [])

    strict.mend()
    resume(stores.engine, lock_timeout_seconds=5)
    recover(stores)

    assert ".to_strict behind event_log refused the rows" in error
    assert f"outbox resume {only_batch(stores).batch_id}" in error
    assert_each_exactly_once(stores.engine, stores.client)
    assert strict.ids() == sorted(committed_ids(stores.engine))


def test_a_target_without_a_window_parks_the_batch_at_once(stores: Stores, strict: Fed) -> None:
    """Sent again its rows would stand twice, so nothing is sent; a resume sends once, and once only."""
    open_target = Fed.make(stores, "open_target", _MENDED, window="")

    database = stores.client.rows("SELECT currentDatabase() AS name")[0]["name"]

    (failure,) = relay(stores).failures
    batch, taken = only_batch(stores), open_target.ids()
    start_over = start_unrequested(stores, batch.batch_id)
    with pytest.raises(ViewError, match="no deduplication window"):
        deliver(start_over)

    assert (batch.status, batch.attempt, batch.last_error) == (BatchStatus.PARKED, 1, failure)
    assert f"view {database}.to_open_target fills {database}.open_target, which has no" in failure
    assert open_target.ids() == taken
    assert_nothing_is_called_delivered(stores)

    stores.client.run("TRUNCATE TABLE open_target")
    strict.mend()
    move_by_hand(stores.engine, "UPDATE outbox.batch SET status = 'parked', holder = NULL, lease_until = NULL")
    resume(stores.engine, lock_timeout_seconds=5)
    recover(stores)

    assert_each_exactly_once(stores.engine, stores.client)
    assert strict.ids() == open_target.ids() == sorted(committed_ids(stores.engine))


def test_a_resume_allows_one_sending_whatever_becomes_of_it(stores: Stores, strict: Fed) -> None:
    """Its answer is lost: nothing more is sent by itself where rows would stand twice behind a view."""
    open_target = Fed.make(stores, "open_target", _MENDED, window="")
    relay(stores)
    strict.mend()
    stores.client.run("TRUNCATE TABLE open_target")
    resume(stores.engine, lock_timeout_seconds=5)

    def lose(point: Point) -> None:
        if point == Point.SENT:
            raise InDoubtError("The connection broke.")

    end = listen(lose)
    relay(stores)
    end()
    make_due(stores)
    error = relay_until_parked(stores)

    assert "no deduplication window" in error
    assert only_batch(stores).attempt == 3
    assert strict.ids() == open_target.ids() == sorted(committed_ids(stores.engine))


def test_a_server_in_trouble_is_no_second_refusal(stores: Stores, strict: Fed) -> None:
    """What a server says that cannot take rows now is waited for, though it says so of a view's target."""
    relay(stores)
    strict.mend()
    stores.client.run("INSERT INTO strict (n) VALUES (0)")
    stores.client.run("ALTER TABLE strict MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1")
    make_due(stores)

    (failure,) = relay(stores).failures
    status = only_batch(stores).status
    stores.client.run("ALTER TABLE strict RESET SETTING parts_to_throw_insert, parts_to_delay_insert")
    stores.client.run("TRUNCATE TABLE strict")
    recover(stores)

    assert "Too many parts" in failure
    assert status == BatchStatus.FAILED
    assert_each_exactly_once(stores.engine, stores.client)
    assert strict.ids() == sorted(committed_ids(stores.engine))


def test_memory_that_a_view_lacks_is_waited_for(stores: Stores, proxy: FaultyProxy) -> None:
    """However often it lacks it: that parks nothing, and what the log has rows of is not split."""
    publish(stores.engine, 7)
    hungry = Fed.make(stores, "hungry", "toUInt32(length(range(20000000 + length(event_context))))")
    settings = starve(proxy, stores.settings, "max_memory_usage=100000000&max_untracked_memory=1")
    said = []
    with clickhouse_client(settings) as client:
        for _ in range(4):
            said += relay(replace(stores, client=client, settings=settings)).failures
            make_due(stores)
    batch, stood = only_batch(stores), delivered_ids(stores.client)
    hungry.mend()
    recover(stores)

    assert len(said) == 4
    assert all("memory" in each for each in said)
    assert set(stood) == committed_ids(stores.engine)
    assert (batch.status, batch.failures, batch.memory_failures) == (BatchStatus.FAILED, 0, 4)
    assert only_batch(stores).status == BatchStatus.PROCESSED
    assert_each_exactly_once(stores.engine, stores.client)
    assert hungry.ids() == sorted(committed_ids(stores.engine))


def test_a_process_that_died_behind_the_answer_leaves_it_in_the_ledger(stores: Stores, strict: Fed) -> None:
    """It wrote no failure, only what it was answered; whoever comes next sends to the view again."""
    refused(stores)
    strict.mend()

    recover(stores)

    assert_each_exactly_once(stores.engine, stores.client)
    assert strict.ids() == sorted(committed_ids(stores.engine))


def test_a_run_that_only_marks_refuses_an_answered_batch(stores: Stores, strict: Fed) -> None:
    """The rows in the log are no proof while the latest answer is an error."""
    delivery = refused(stores)
    second = start_unrequested(stores, delivery.lease.batch_id)

    with pytest.raises(ProofError, match="Run its load step again"):
        second.mark()
    second.close()

    assert strict.ids() == []


def test_a_view_that_is_gone_is_owed_nothing(stores: Stores, strict: Fed) -> None:
    """Where no view can lack the rows, what the log shows is the proof again."""
    delivery = refused(stores)
    stores.client.run("DROP VIEW to_strict")

    second = start_unrequested(stores, delivery.lease.batch_id)
    loaded = second.load()
    second.mark()

    assert (loaded.was_there, only_batch(stores).answered_generation) == (True, None)
    assert_each_exactly_once(stores.engine, stores.client)


def test_what_the_log_refuses_is_quarantined_beside_a_view(stores: Stores) -> None:
    """The words of an event can name a view: what the log has no rows of was not refused behind it."""
    database = stores.client.rows("SELECT currentDatabase() AS name")[0]["name"]
    fed = Fed.make(stores, "fed", _MENDED, window="")
    publish(stores.engine, 5)
    publish(stores.engine, 1, event_type=f"while pushing to view {database}.to_fed")
    stores.client.run("ALTER TABLE {table:Identifier} ADD CONSTRAINT none CHECK event_type NOT LIKE 'while%'")

    result = relay(stores, until_empty=True)

    assert (result.delivered_count, result.quarantined_count, result.failures) == (5, 1, ())
    assert_each_exactly_once(stores.engine, stores.client)
    assert fed.ids() == sorted(delivered_ids(stores.client))


def test_an_event_that_names_a_view_puts_no_blame_on_it(stores: Stores) -> None:
    """ClickHouse quotes the event before it names the view that threw."""
    database = stores.client.rows("SELECT currentDatabase() AS name")[0]["name"]
    Fed.make(stores, "patient", _MENDED)
    Fed.make(stores, "strict", "toUInt32(event_type)")
    publish(stores.engine, 1, event_type=f"while pushing to view {database}.to_patient")

    (failure,) = relay(stores).failures

    assert failure.startswith(f"View {database}.to_strict behind event_log refused")


@pytest.mark.parametrize("is_same_attempt", [True, False])
def test_an_answer_that_the_ledger_could_not_take_is_taken_later(
    stores: Stores, strict: Fed, monkeypatch: pytest.MonkeyPatch, is_same_attempt: bool
) -> None:
    """As long as the process lives: before the same attempt looks again, or with the failure that ends it."""

    def refuse(*_: object) -> None:
        raise TransientError("PostgreSQL restarts.")

    delivery = start(stores)
    with monkeypatch.context() as patch:
        patch.setattr(leases, "note_answer", refuse)
        with pytest.raises(TransientError) as failed:
            delivery.load()
    strict.mend()
    if is_same_attempt:
        delivery.load()
        delivery.mark()
    else:
        end_failed(delivery, failed.value)
        recover(stores)

    assert_each_exactly_once(stores.engine, stores.client)
    assert strict.ids() == sorted(committed_ids(stores.engine))
