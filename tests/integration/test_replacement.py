"""A corrected event in place of a held one: published and linked in one transaction, or neither."""

import json
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from outbox_pipeline.errors import QuarantineError, TransientError
from outbox_pipeline.events import EventRow, prepare_event
from outbox_pipeline.operations.quarantine import count_held, discard, replace, requeue, show
from outbox_pipeline.postgres.adopt import create_stage
from outbox_pipeline.postgres.queries import query
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.commands import Outbox
from tests.fixtures.events import assert_each_exactly_once, committed_ids, delivered_ids, publish
from tests.fixtures.interleave import at_statement
from tests.fixtures.snapshots import delivered_once


@pytest.fixture
def outbox(outbox: Outbox) -> Outbox:
    """Run `outbox quarantine …` on this test's databases."""
    return partial(outbox, "quarantine")


@delivered_once
def hold(stores: Stores) -> UUID:
    """Publish one event that is refused, and one that is not; return the refused one's id."""
    publish(stores.engine)
    (event_id,) = publish(stores.engine, context="[1]")
    relay(stores, until_empty=True)
    return event_id


def one(event_id: UUID) -> Filter:
    """Name an event."""
    return Filter(event_ids=frozenset({event_id}))


def correction(event_id: UUID | None = None) -> EventRow:
    """A good event."""
    return prepare_event({"n": 2}, event_type="order_placed", environment="test", event_id=event_id)


def test_a_replaced_event_stays_out_and_its_correction_arrives(stores: Stores) -> None:
    """The correction is delivered exactly once, the original never, and each names the other."""
    event_id = hold(stores)

    corrected = replace(stores.engine, one(event_id), correction())
    pending = committed_ids(stores.engine)
    relay(stores, until_empty=True)

    assert corrected in pending
    (stay,) = show(stores.engine, one(event_id)).history
    assert (stay.status, stay.replaced_by) == ("replaced", corrected)
    assert stay.resolved_at is not None
    assert corrected in delivered_ids(stores.client)
    assert event_id not in delivered_ids(stores.client)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_correction_that_is_bad_is_held_itself(stores: Stores) -> None:
    """Trying costs nothing: the correction can be replaced in turn."""
    event_id = hold(stores)
    bad = prepare_event({}, event_type="order_placed", environment="test")
    bad = bad._replace(event_context="[2]")

    replace(stores.engine, one(event_id), bad)
    relay(stores, until_empty=True)
    replace(stores.engine, one(bad.event_id), correction())
    relay(stores, until_empty=True)

    assert count_held(stores.engine).count == 0
    assert_each_exactly_once(stores.engine, stores.client)


def test_only_a_held_event_is_replaced(stores: Stores) -> None:
    """What was requeued, discarded or replaced already is not replaced again, and nothing is published."""
    first, second, third = hold(stores), hold(stores), hold(stores)
    requeue(stores.engine, one(first))
    discard(stores.engine, one(second), note="test")
    replace(stores.engine, one(third), correction())
    before = committed_ids(stores.engine)

    for event_id in (first, second, third):
        with pytest.raises(QuarantineError, match="not held any more"):
            replace(stores.engine, one(event_id), correction())
    with pytest.raises(QuarantineError, match="Not in quarantine"):
        replace(stores.engine, one(uuid4()), correction())
    with pytest.raises(QuarantineError, match="not held any more"):
        requeue(stores.engine, one(third))

    assert committed_ids(stores.engine) == before


def test_a_correction_needs_an_id_of_its_own(stores: Stores) -> None:
    """With the id of an event that is there nothing would be published, so nothing is replaced either."""
    event_id = hold(stores)

    with pytest.raises(QuarantineError, match="already"):
        replace(stores.engine, one(event_id), correction(event_id))

    assert count_held(stores.engine).count == 1


@pytest.mark.parametrize("number", range(1, 8))
def test_a_replacement_that_breaks_off_changes_nothing(stores: Stores, postgres_url: str, number: int) -> None:
    """With its session ended between any two statements nothing is published and the event held, or both are done."""
    event_id = hold(stores)
    before = committed_ids(stores.engine)
    other = create_engine(postgres_url, isolation_level="AUTOCOMMIT")

    def end_sessions() -> None:
        with other.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )

    done = True
    try:
        with at_statement(stores.engine, number, end_sessions):
            replace(stores.engine, one(event_id), correction())
    except TransientError:
        done = False
    other.dispose()
    stores.engine.dispose()

    assert len(committed_ids(stores.engine) - before) == int(done)
    assert show(stores.engine, one(event_id)).history[-1].status == ("replaced" if done else "held")
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


@pytest.mark.parametrize("number", range(1, 6))
def test_a_requeue_in_between_wins_or_loses_whole(stores: Stores, postgres_url: str, number: int) -> None:
    """One person requeues while another replaces: one of them gets the event, and it arrives once or not at all."""
    event_id = hold(stores)
    other = create_engine(postgres_url)
    counts: list[int] = []

    def requeue_too() -> None:
        try:
            counts.append(requeue(other, one(event_id), lock_timeout_seconds=0.05).count)
        except (QuarantineError, TransientError):
            counts.append(0)

    try:
        with at_statement(stores.engine, number, requeue_too):
            replace(stores.engine, one(event_id), correction())
        counts.append(1)
    except QuarantineError:
        counts.append(0)
    other.dispose()
    relay(stores, until_empty=True)

    assert sum(counts) == 1
    stays = [stay.status for stay in show(stores.engine, one(event_id)).history]
    assert stays == (["replaced"] if counts[-1] else ["requeued", "held"])
    assert_each_exactly_once(stores.engine, stores.client)


def test_an_adopted_delivery_takes_a_replaced_event_back(stores: Stores) -> None:
    """When the old instance turns out to have delivered the original, it is no longer called replaced."""
    event_id = hold(stores)
    replace(stores.engine, one(event_id), correction())

    with stores.engine.begin() as connection:
        create_stage(connection)
        connection.execute(
            text(
                "INSERT INTO pg_temp.shown_row SELECT gen_random_uuid(), position, true FROM outbox.event"
                " WHERE event_id = :event_id"
            ),
            {"event_id": event_id},
        )
        connection.execute(query("release_positions"), {"keep_holders": False})

    (stay,) = show(stores.engine, one(event_id)).history
    assert (stay.status, stay.replaced_by) == ("requeued", None)


def test_a_replaced_event_may_be_deleted_and_a_held_one_not(stores: Stores) -> None:
    """A replaced event is as settled as a discarded one; deletion of what is held is refused."""
    first, second = hold(stores), hold(stores)
    replace(stores.engine, one(first), correction())
    delete = text("DELETE FROM outbox.event WHERE event_id = :event_id")

    with stores.engine.begin() as connection:
        assert connection.execute(delete, {"event_id": first}).rowcount == 1
    with pytest.raises(DBAPIError, match="not delivered yet"), stores.engine.begin() as connection:
        connection.execute(delete, {"event_id": second})


def test_the_file_gives_what_is_corrected_and_the_event_the_rest(
    outbox: Outbox, stores: Stores, tmp_path: Path
) -> None:
    """A file of several lines with a context alone: type, environment, time and version are the held event's."""
    event_id = hold(stores)
    file = tmp_path / "corrected.json"
    file.write_text('{\n  "event_context": {"n": 1.10}\n}\n')

    asked = outbox("replace", str(event_id), "--with", str(file))
    done = outbox("replace", str(event_id), "--with", str(file), "--yes", "--json")
    relay(stores, until_empty=True)

    assert (asked.exit_code, count_held(stores.engine).count) == (2, 0)
    assert "--yes" in asked.stderr
    answer = json.loads(done.stdout)
    assert (done.exit_code, answer["replaced"]) == (0, str(event_id))
    columns = "event_type, environment, event_date_time, metadata_version, event_context::text AS context"
    with stores.engine.begin() as connection:
        old, new = (
            connection.execute(
                text(f"SELECT {columns} FROM outbox.event WHERE event_id = :event_id"), {"event_id": name}
            ).one()
            for name in (event_id, answer["replaced_by"])
        )
    assert (old[:4], new.context) == (new[:4], '{"n": 1.10}')
    assert_each_exactly_once(stores.engine, stores.client)
    assert f"replaced by {answer['replaced_by']}" in outbox("list", "--status", "replaced").stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "not valid JSON"),
        ("{}", "event_context must be given"),
        ('{"event_context": [1]}', "must be a JSON object"),
        ('{"event_context": {}}\n{"event_context": {}}', "Something follows"),
        ('{"event_context": {}, "event_type": ""}', "must not be empty"),
    ],
)
def test_a_file_that_is_no_event_changes_nothing(outbox: Outbox, stores: Stores, content: str, said: str) -> None:
    """What is wrong with the file is one sentence; the event stays held."""
    event_id = hold(stores)

    result = outbox("replace", str(event_id), "--with", "-", "--yes", given=content)

    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    assert count_held(stores.engine).count == 1
