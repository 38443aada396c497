"""How far a day is delivered, as ClickHouse is told: never further than is true, whatever is open or on its way."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from outbox_pipeline.clickhouse.completeness import delivered_problem, read_delivered, write_days
from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.errors import ConfigurationError, LedgerError
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.quarantine import discard, requeue
from outbox_pipeline.postgres import completeness as watermark
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested, start_unrequested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.clock import shift
from tests.fixtures.days import publish_yesterday, today, yesterday
from tests.fixtures.events import publish
from tests.fixtures.ledger import execute
from tests.fixtures.owners import identity_of
from tests.fixtures.snapshots import delivered_batches

DOCS = Path(__file__).parents[2] / "docs" / "completeness.md"


def test_a_quiet_day_is_complete_through_now(stores: Stores) -> None:
    """Without events the table says that there are none, and through when."""
    publish(stores.engine, 3)
    publish(stores.engine, 2, context="[]")
    relay(stores, until_empty=True)

    day = today(stores)

    assert day.complete_through == day.written_at
    assert (day.event_count, day.quarantined_count, day.undelivered_count, day.is_complete) == (3, 2, 0, False)


def test_yesterday_is_whole_once_its_last_event_is_delivered(stores: Stores) -> None:
    """A pending event holds its own day back and no other; delivered, the day is complete up to its end."""
    at = publish_yesterday(stores.engine)
    pending = yesterday(stores)
    cut_batches(stores.engine, stores.settings, limit=1)
    in_flight = yesterday(stores)
    relay(stores, until_empty=True)
    done = yesterday(stores)

    assert (pending.complete_through, pending.undelivered_count, pending.is_complete) == (at, 1, False)
    assert (in_flight.complete_through, in_flight.undelivered_count) == (at, 1)
    assert done.complete_through == datetime.combine(done.day + timedelta(days=1), datetime.min.time(), UTC)
    assert (done.event_count, done.undelivered_count, done.is_complete) == (1, 0, True)
    assert today(stores).complete_through > at + timedelta(hours=23)


def test_a_whole_day_is_not_written_again(stores: Stores) -> None:
    """The table grows by a row a write, not by a row for each day there ever was."""
    publish_yesterday(stores.engine)
    relay(stores, until_empty=True)
    record_completeness(stores)

    again = record_completeness(stores)

    assert len(read_delivered(stores.client)) == 2
    assert [day.day for day in again.days] == [again.written_at.astimezone(UTC).date()]


@pytest.mark.parametrize("ends", ["parked", "failed", "delivering", "delivered again"])
def test_a_batch_on_its_way_holds_its_day_back(patient: Stores, ends: str) -> None:
    """A batch that is delivered, failed, parked, or being delivered again bounds the day by its oldest event."""
    stores = patient
    at = publish_yesterday(stores.engine)
    cut_batches(stores.engine, stores.settings, limit=1)
    (request,) = request_batches(stores.engine, stores.settings, limit=1)
    delivery = start_requested(stores, request.batch_id, request.attempt)
    if ends in {"parked", "failed"}:
        limit = 1 if ends == "parked" else 1000
        settings = stores.settings.model_copy(update={"max_attempts": limit})
        delivery.stores = replace(stores, settings=settings)
        end_failed(delivery, RuntimeError("gone wrong"))
    if ends == "delivered again":
        delivery.load()
        delivery.mark()
        assert yesterday(stores).is_complete
        delivery = start_unrequested(stores, request.batch_id)
    day = yesterday(stores)
    delivery.close()

    assert (day.complete_through, day.undelivered_count, day.event_count) == (at, 1, 0)


def test_a_day_told_whole_long_ago_is_held_back_while_it_is_sent_again(patient: Stores) -> None:
    """Its batch was marked before all that the last write looked at, and its events are on their way all the same."""
    at = publish_yesterday(patient.engine)
    relay(patient, until_empty=True)
    whole = yesterday(patient)
    with patient.engine.begin() as connection:
        batch_id = connection.scalar(
            text("UPDATE outbox.batch SET processed_at = processed_at - interval '3 hours' RETURNING batch_id")
        )
    assert isinstance(batch_id, UUID)
    delivery = start_unrequested(patient, batch_id)
    sent_again = yesterday(patient)
    delivery.close()

    assert whole.is_complete
    assert (sent_again.complete_through, sent_again.undelivered_count) == (at, 1)


def test_requeued_events_open_their_day_again(stores: Stores) -> None:
    """Held events do not hold a day back but are counted; given back to delivery they do, until they are delivered."""
    at = publish_yesterday(stores.engine, context='{"text": "0123456789"}')
    strict = replace(stores, settings=stores.settings.model_copy(update={"context_max_bytes": 10}))
    relay(strict, until_empty=True)
    held = yesterday(stores)
    requeue(stores.engine, Filter())
    requeued = yesterday(stores)
    relay(stores, until_empty=True)
    delivered = yesterday(stores)

    assert (held.is_complete, held.quarantined_count, held.event_count) == (True, 1, 0)
    assert (requeued.complete_through, requeued.quarantined_count, requeued.undelivered_count) == (at, 0, 1)
    assert (delivered.is_complete, delivered.event_count) == (True, 1)


def test_what_was_delivered_between_two_writes_is_told(stores: Stores) -> None:
    """A day that was whole at both writes has more events at the second: the time of the mark brings it up again."""
    publish_yesterday(stores.engine, context='{"text": "0123456789"}')
    strict = replace(stores, settings=stores.settings.model_copy(update={"context_max_bytes": 10}))
    relay(strict, until_empty=True)
    held = yesterday(stores)
    requeue(stores.engine, Filter())
    relay(stores, until_empty=True)
    execute(stores.engine, "UPDATE outbox.quarantined_event SET resolved_at = resolved_at - interval '3 hours'")
    delivered = yesterday(stores)

    assert (held.is_complete, held.event_count, held.quarantined_count) == (True, 0, 1)
    assert (delivered.is_complete, delivered.event_count, delivered.quarantined_count) == (True, 1, 0)


def test_discarded_events_are_told_apart(stores: Stores) -> None:
    """A day that lost events to a decision says how many."""
    publish_yesterday(stores.engine, context="[1]")
    relay(stores, until_empty=True)
    record_completeness(stores)
    execute(stores.engine, "UPDATE outbox.batch SET processed_at = processed_at - interval '3 hours'")
    discard(stores.engine, Filter(), note="test")
    day = yesterday(stores)

    assert (day.is_complete, day.quarantined_count, day.discarded_count) == (True, 0, 1)


def test_a_backlog_beyond_counting_holds_every_day_back(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all pending events are looked at, the oldest of them bounds every day."""
    monkeypatch.setattr(watermark, "MAX_PENDING", 2)
    at = publish_yesterday(stores.engine)
    publish(stores.engine, 5)

    assert today(stores).complete_through == at


def test_readers_get_the_latest_row_of_a_day(stores: Stores) -> None:
    """A write that was held up for an hour and arrives last does not turn the table back."""
    publish_yesterday(stores.engine)
    early = {**vars(yesterday(stores))}
    relay(stores, until_empty=True)
    done = yesterday(stores)
    write_days(stores.client, [early], identity=identity_of(stores))

    rows = stores.client.rows("SELECT * FROM {delivered:Identifier} WHERE day = {day:Date}", {"day": str(done.day)})

    assert [(row["event_count"], row["is_complete"]) for row in rows] == [(1, 1)]
    assert read_delivered(stores.client)[-2] == done


def told_ahead(stores: Stores, *, days: int) -> None:
    """Leave what writes under a clock that was ahead have left: each day up to then is whole, and nothing is open."""
    now = datetime.now(UTC)
    row = vars(read_delivered(stores.client)[-1]) | {"written_at": now + timedelta(days=days)}
    whole = [now.date() + timedelta(days=n) for n in range(days)]
    ends = [datetime.combine(day + timedelta(days=1), datetime.min.time(), UTC) for day in whole]
    rows = [row | {"day": day, "complete_through": end} for day, end in zip(whole, ends, strict=True)]
    write_days(stores.client, rows, identity=identity_of(stores))
    shift(stores.engine, days=days, table="watermark")


def test_what_was_told_under_a_clock_that_was_ahead_is_taken_back(stores: Stores) -> None:
    """No day is called whole that is not over: the latest rows came from a wrong clock, and they go."""
    publish_yesterday(stores.engine)
    relay(stores, until_empty=True)
    before = record_completeness(stores)
    told_ahead(stores, days=40)
    told = read_delivered(stores.client)[-1]

    after = record_completeness(stores)

    assert (told.is_complete, told.day) == (True, before.written_at.date() + timedelta(days=39))
    days = read_delivered(stores.client)
    assert [(day.day, day.is_complete) for day in days] == [
        (after.written_at.date() - timedelta(days=1), True),
        (after.written_at.date(), False),
    ]
    assert days[-1].written_at == after.written_at >= days[-1].complete_through
    assert "40 told anew, because PostgreSQL's clock was ahead" in after.summary()
    assert record_completeness(stores).retold_count == 0


def test_an_event_recorded_after_the_end_of_its_day_keeps_the_day_open(stores: Stores) -> None:
    """A day with an event on its way is not whole, whatever a clock that was ahead wrote on the event."""
    publish(stores.engine)
    cut_batches(stores.engine, stores.settings, limit=1)
    execute(stores.engine, "UPDATE outbox.batch SET oldest_recorded_at = now() + interval '400 days'")
    execute(stores.engine, "UPDATE outbox.batch SET recorded_on = recorded_on - 1")
    day = yesterday(stores)

    assert (day.is_complete, day.undelivered_count) == (False, 1)
    relay(stores, until_empty=True)
    assert yesterday(stores).is_complete


def test_a_day_in_the_future_keeps_no_other_from_being_told(stores: Stores) -> None:
    """What was delivered of a day that has not come is told and not whole; the days until now are told beside it."""
    delivered_batches(stores, (1,))
    shift(stores.engine, days=400)
    now = record_completeness(stores).written_at.date()
    stores.client.run("DELETE FROM {completeness:Identifier} WHERE day = {day:Date}", {"day": str(now)})

    record_completeness(stores)
    record_completeness(stores)

    days = [(day.day, day.is_complete, day.event_count) for day in read_delivered(stores.client)]
    assert days == [(now, False, 0), (now + timedelta(days=400), False, 1)]


def test_a_day_that_a_broken_write_left_out_is_told_by_the_next(stores: Stores) -> None:
    """A write that died after it had taken something back is made up for."""
    publish_yesterday(stores.engine)
    relay(stores, until_empty=True)
    execute(
        stores.engine, "UPDATE outbox.batch SET recorded_on = recorded_on - 3, processed_at = now() - interval '1 day'"
    )
    record_completeness(stores)
    whole = read_delivered(stores.client)
    stores.client.run("DELETE FROM {completeness:Identifier} WHERE day = {day:Date}", {"day": str(whole[2].day)})

    record_completeness(stores)

    assert len(whole) == 5
    assert [day.day for day in read_delivered(stores.client)] == [day.day for day in whole]


#: Within the overlap that the docs name, and beyond it.
_LATER = """
SELECT toString(now64(6, 'UTC') + INTERVAL 30 MINUTE) AS soon, toString(now64(6, 'UTC') + INTERVAL 2 HOUR) AS later
"""


@pytest.mark.parametrize("zone", ["UTC", "Etc/GMT+12", "Etc/GMT-14"])
def test_the_queries_in_the_docs_agree_with_the_rows(stores: Stores, zone: str) -> None:
    """What analysts copy runs in any time zone, and finds a day whole, or that somebody took a row away.

    At any time one of the two zones at the ends has another day than UTC.
    """
    snippets = re.findall(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL)
    asked, compared, touched = (f"{snippet} SETTINGS session_timezone = '{zone}'" for snippet in snippets)
    publish_yesterday(stores.engine)
    publish_yesterday(stores.engine)
    publish_yesterday(stores.engine, context="[1]")
    relay(stores, until_empty=True)
    record_completeness(stores)

    (answer,) = stores.client.rows(asked)
    (whole,) = stores.client.rows(compared)
    (looks,) = stores.client.rows(_LATER)
    new = [stores.client.rows(touched, {"last_look": look}) for look in looks.values()]
    stores.client.run("DELETE FROM {table:Identifier} WHERE position = 1")
    (changed,) = stores.client.rows(compared)

    assert (answer["is_complete"], answer["event_count"], answer["quarantined_count"]) == (1, 2, 1)
    assert (whole["told"], whole["found"], whole["same_events"]) == (2, 2, 1)
    assert (changed["told"], changed["found"], changed["same_events"]) == (2, 1, 0)
    assert new == [[{"source": "", "day": answer["day"]}], []]


def test_a_missing_table_is_one_sentence_and_stops_no_delivery(stores: Stores) -> None:
    """An installation from before the table delivers on, and is told how to get it."""
    stores.client.run("DROP TABLE {delivered:Identifier}")
    publish(stores.engine)
    relay(stores, until_empty=True)

    with pytest.raises(ConfigurationError, match="has no table or view event_log_delivered: run 'outbox init'"):
        record_completeness(stores)
    assert stores.client.rows("SELECT count() AS n FROM {table:Identifier}") == [{"n": 1}]
    create_table(stores.client)
    assert delivered_problem(stores.client) is None
    assert today(stores).event_count == 1


def test_a_ledger_of_another_cluster_writes_nothing(stores: Stores) -> None:
    """A clone or a restored copy must not overwrite what the original says."""
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.unclaimed SET system_identifier = 1"))

    with pytest.raises(LedgerError, match="outbox adopt"):
        record_completeness(stores)
    assert read_delivered(stores.client) == []
