"""ClickHouse is a witness of the ledger: nothing is sent by one that was set back, or that has a living copy."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import date
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, text

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.completeness import read_delivered, write_days
from outbox_pipeline.clickhouse.witness import ADOPTION, Cut, add_cuts, cuts_since, drop_cuts, highest_number
from outbox_pipeline.errors import LostDeliveriesError, TransientError, WitnessError
from outbox_pipeline.ids import uuid7
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.operations import retention
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.repair import repair
from outbox_pipeline.operations.replay import replay
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.postgres import witness as numbers
from outbox_pipeline.relay import witness
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested, start_unrequested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.relay.tick import plan_tick
from outbox_pipeline.relay.witness import ask_seen, missing_cuts
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import start
from tests.fixtures.children import recover
from tests.fixtures.events import assert_each_exactly_once, committed_ids, delivered_ids, publish
from tests.fixtures.instances import all_batches, cut_without_number
from tests.fixtures.interleave import note_calls
from tests.fixtures.moves import move_by_hand
from tests.fixtures.owners import identity_of, ledger_id_of
from tests.fixtures.snapshots import delivered_batches
from tests.fixtures.step_orders import WITNESS_STEPS

EVER = (date.min, date.max)


def cuts(stores: Stores) -> set[Cut]:
    """Return what ClickHouse has on record."""
    return {cut for block in cuts_since(stores.client, 0) for cut in block}


def number_of(stores: Stores, batch_id: UUID) -> int:
    """Return the batch's number in the ledger."""
    return next(batch.cut_number for batch in all_batches(stores) if batch.batch_id == batch_id) or 0


def test_each_batch_is_on_record_under_its_number(stores: Stores) -> None:
    """Numbers follow each other in the order of the cuts, and ClickHouse has them with their batches."""
    for _ in range(3):
        publish(stores.engine, 2)
        relay(stores, until_empty=True)

    batches = all_batches(stores)

    assert [batch.cut_number for batch in batches] == [1, 2, 3]
    assert cuts(stores) == {Cut(batch.cut_number or 0, batch.batch_id) for batch in batches}
    assert_each_exactly_once(stores.engine, stores.client)


def test_the_steps_of_a_delivery_are_in_the_order_of_the_model(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is committed, written, read in ClickHouse, then in PostgreSQL, and only then is something sent."""
    steps: list[str] = []
    publish(stores.engine, 2)
    note_calls(monkeypatch, witness, "add_cuts", before="write", steps=steps)
    note_calls(monkeypatch, numbers, "read_cuts", before="read PostgreSQL", steps=steps)
    run, blocks = EventLogClient.run, EventLogClient.blocks

    def noted_blocks(client: EventLogClient, statement: str, *arguments: Any) -> Iterator[Any]:
        if "cut_number" in statement:
            steps.append("read ClickHouse")
        yield from blocks(client, statement, *arguments)

    def noted_run(client: EventLogClient, statement: str, *arguments: Any, **options: Any) -> None:
        if statement.startswith("INSERT INTO {table:"):
            steps.append("send")
        run(client, statement, *arguments, **options)

    def on_commit(connection: Any) -> None:
        if connection.info.pop("cuts", False):
            steps.append("commit")

    def on_statement(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO outbox.batch"):
            connection.info["cuts"] = True

    monkeypatch.setattr(EventLogClient, "run", noted_run)
    monkeypatch.setattr(EventLogClient, "blocks", noted_blocks)
    event.listen(stores.engine, "commit", on_commit)
    event.listen(stores.engine, "before_cursor_execute", on_statement)
    deliver(start(stores))

    assert tuple(steps) == WITNESS_STEPS


def test_a_copy_that_comes_second_sends_nothing(stores: Stores, copy: Stores) -> None:
    """The original delivered the pending events; the copy, which has them pending too, is stopped before its cut."""
    relay(stores, until_empty=True)
    published = publish(copy.engine, 1)
    before = len(all_batches(copy))

    for go_on in (
        lambda: relay(copy, until_empty=True),
        lambda: plan_tick(copy.engine, copy.settings, days=EVER, seen=ask_seen(copy.engine, copy.settings)),
        lambda: record_completeness(copy),
        lambda: reconcile(copy),
        lambda: list(replay(copy, all_batches(copy))),
        lambda: prune(copy),
    ):
        with pytest.raises(WitnessError, match="outbox adopt"):
            go_on()

    assert len(all_batches(copy)) == before
    assert sorted(delivered_ids(stores.client)) == sorted(committed_ids(stores.engine))
    assert not set(published) & set(delivered_ids(stores.client))


@pytest.mark.parametrize("steps", [("extract",), ("extract", "validate"), ()])
def test_an_attempt_that_cut_before_the_other_delivered_is_stopped_before_its_first_byte(
    stores: Stores, copy: Stores, steps: tuple[str, ...]
) -> None:
    """The copy cut the same events while nothing was on record; what counts is the look after its own row."""
    delivery = start(copy)
    for step in steps:
        getattr(delivery, step)()
    relay(stores, until_empty=True)
    with pytest.raises(WitnessError, match="which this ledger does not know"):
        deliver(delivery)

    assert number_of(copy, delivery.lease.batch_id) == 2
    assert Cut(2, delivery.lease.batch_id) in cuts(copy)
    assert sorted(delivered_ids(stores.client)) == sorted(committed_ids(stores.engine))


def test_the_original_is_stopped_where_the_copy_came_first(stores: Stores, copy: Stores) -> None:
    """Which of two instances is the right one ClickHouse cannot know: the later one stops, and nothing is doubled."""
    relay(copy, until_empty=True)

    with pytest.raises(WitnessError, match="number 2"):
        relay(stores, until_empty=True)

    assert len(delivered_ids(stores.client)) == len(set(delivered_ids(stores.client))) == 5


def test_two_at_once_never_both_send(stores: Stores, copy: Stores) -> None:
    """While one has written its number and not looked yet, the other one does both: then each sees the other."""
    first, second = start(stores), start(copy)
    stopped: list[Delivery] = []

    def meanwhile(point: Point) -> None:
        if point == Point.WITNESSED:
            end()
            attempt(second)

    def attempt(delivery: Delivery) -> None:
        try:
            deliver(delivery)
        except WitnessError:
            stopped.append(delivery)

    end = listen(meanwhile)
    attempt(first)

    assert stopped == [second, first]
    assert len(delivered_ids(stores.client)) == len(set(delivered_ids(stores.client))) == 2


def test_a_relay_that_is_stopped_on_its_way_ends(stores: Stores, copy: Stores) -> None:
    """The other instance delivers after its start: the attempt is stopped, and it does not go on to the next batch."""

    def deliver_there(point: Point) -> None:
        if point == Point.CUT:
            end()
            relay(stores, until_empty=True)

    end = listen(deliver_there)
    with pytest.raises(WitnessError, match="outbox adopt"):
        relay(copy)

    assert sorted(delivered_ids(stores.client)) == sorted(committed_ids(stores.engine))


def test_a_batch_behind_others_looks_under_their_numbers_too(stores: Stores, copy: Stores) -> None:
    """The copy delivered in one batch, under the first one's number, what the original has cut into three."""
    small = stores.settings.model_copy(update={"batch_max_events": 1})
    cut_batches(stores.engine, small, limit=3)
    requests = request_batches(stores.engine, small, limit=3)
    relay(copy, until_empty=True)

    for request in requests:
        with pytest.raises(WitnessError, match="number 2"):
            deliver(start_requested(stores, request.batch_id, request.attempt))

    assert sorted(delivered_ids(stores.client)) == sorted(committed_ids(copy.engine))


def test_a_batch_of_which_nothing_is_sent_is_on_record_too(stores: Stores) -> None:
    """All its events are rejected, and its first attempt ended before its look: batches behind it rely on that."""
    publish(stores.engine, 2, context="[]")
    delivery = start(stores)
    delivery.prepare()
    delivery.close()
    end_failed(delivery, TransientError("ClickHouse is away."))

    recover(stores)

    (batch,) = all_batches(stores)
    assert (batch.status, batch.accepted_count) == (BatchStatus.PROCESSED, 0)
    assert cuts(stores) == {Cut(1, batch.batch_id)}


def test_a_batch_behind_others_is_not_stopped_by_them(stores: Stores) -> None:
    """Batches of one ledger go out in whatever order, also behind the number of an adoption."""
    publish(stores.engine, 3)
    small = stores.settings.model_copy(update={"batch_max_events": 1})
    cut_batches(stores.engine, small, limit=2)
    add_cuts(stores.client, [Cut(1, uuid7()), Cut(2, ADOPTION)], ledger_id_of(stores))
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET cut_number = cut_number - 1"))
        connection.execute(text("UPDATE outbox.unclaimed SET witness_floor = 2, last_cut_number = 2"))
    cut_batches(stores.engine, small, limit=1)

    for request in reversed(request_batches(stores.engine, small, limit=3)):
        deliver(start_requested(stores, request.batch_id, request.attempt))

    assert_each_exactly_once(stores.engine, stores.client)


def test_a_batch_that_is_given_its_number_late_looks_under_those_given_meanwhile(stores: Stores) -> None:
    """Its number is drawn after its attempt has begun, above one that another instance may have used."""
    publish(stores.engine, 1)
    cut_without_number(stores)
    (request,) = request_batches(stores.engine, stores.settings, limit=1)
    delivery = start_requested(stores, request.batch_id, request.attempt)
    publish(stores.engine, 1)
    cut_batches(stores.engine, stores.settings, limit=1)
    between = max(batch.cut_number or 0 for batch in all_batches(stores))
    add_cuts(stores.client, [Cut(between, uuid7())], ledger_id_of(stores))

    with pytest.raises(WitnessError, match=f"number {between}"):
        deliver(delivery)

    assert number_of(stores, request.batch_id) > between
    assert delivered_ids(stores.client) == []


def test_an_adoption_elsewhere_refuses_what_is_told_of_days(stores: Stores) -> None:
    """An instance that looked before the ledger was adopted elsewhere tells of no day any more."""
    delivered_batches(stores, (1,))
    record_completeness(stores)
    told = read_delivered(stores.client)
    add_cuts(stores.client, [Cut(9, ADOPTION)], ledger_id_of(stores))

    with pytest.raises(WitnessError, match="refused the insert"):
        write_days(stores.client, [vars(told[-1])], identity=identity_of(stores))

    assert read_delivered(stores.client) == told


def test_an_adoption_elsewhere_refuses_an_insert_on_its_way(stores: Stores) -> None:
    """An instance that looked before the ledger was adopted elsewhere is refused by ClickHouse itself."""
    publish(stores.engine, 2)
    delivery = start(stores)
    delivery.prepare()
    add_cuts(stores.client, [Cut(9, ADOPTION)], ledger_id_of(stores))
    delivery._is_witnessed = True

    with closing(delivery), pytest.raises(WitnessError, match="outbox adopt"):
        delivery.load()

    assert delivered_ids(stores.client) == []


def test_numbers_below_the_floor_stop_nothing(stores: Stores) -> None:
    """What the old instance left on record below the adoption is known to be there; at or above it, it is not."""
    publish(stores.engine, 2)
    add_cuts(stores.client, [Cut(3, uuid7()), Cut(4, ADOPTION)], ledger_id_of(stores))
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.unclaimed SET witness_floor = 4, last_cut_number = 4"))

    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)

    publish(stores.engine, 1)
    add_cuts(stores.client, [Cut(5, uuid7())], ledger_id_of(stores))
    with pytest.raises(WitnessError, match="number 5"):
        relay(stores, until_empty=True)


def test_another_source_s_cuts_stop_nothing(stores: Stores) -> None:
    """Each source has numbers of its own."""
    publish(stores.engine, 2)
    add_cuts(stores.client.of_source("shop"), [Cut(1, uuid7()), Cut(7, ADOPTION)], ledger_id_of(stores))

    relay(stores, until_empty=True)

    assert_each_exactly_once(stores.engine, stores.client)


def test_an_empty_witness_stops_nothing(stores: Stores) -> None:
    """The table that was emptied by hand says nothing of the ledger, and fills again."""
    delivered_batches(stores, (2,))
    stores.client.run("TRUNCATE TABLE {ledger:Identifier}")

    assert missing_cuts(stores) == []
    record_completeness(stores)
    publish(stores.engine, 1)
    relay(stores, until_empty=True)

    assert [cut.cut_number for cut in cuts(stores)] == [2]
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_clickhouse_that_was_restored_is_told_and_healed(stores: Stores) -> None:
    """Rows and record of the last batches are gone: days are not called delivered, and a repair brings both back."""
    for _ in range(3):
        publish(stores.engine, 2)
        relay(stores, until_empty=True)
    for table, where in (("ledger", "cut_number > 1"), ("table", "position > 2")):
        stores.client.run(f"DELETE FROM {{{table}:Identifier}} WHERE {where}", settings={"lightweight_deletes_sync": 2})
    publish(stores.engine, 1)
    relay(stores, until_empty=True)

    with pytest.raises(LostDeliveriesError, match="no record of 2 batches") as refused:
        record_completeness(stores)
    (told,) = [check for check in examine(stores.settings) if check.name == "clickhouse witness"]
    repair(stores, reconcile(stores))

    day = all_batches(stores)[0].recorded_on
    assert f"'outbox reconcile --from {day} --to {day} --repair'" in str(refused.value)
    assert (told.ok, told.message) == (False, str(refused.value))
    assert missing_cuts(stores) == []
    assert_each_exactly_once(stores.engine, stores.client)
    record_completeness(stores)


def test_a_record_that_was_lost_alone_comes_back(stores: Stores) -> None:
    """Where ClickHouse still shows the batch's rows, a comparison puts its number on record again."""
    for _ in range(2):
        publish(stores.engine, 2)
        relay(stores, until_empty=True)
    before = cuts(stores)
    stores.client.run("DELETE FROM {ledger:Identifier} WHERE cut_number = 1", settings={"lightweight_deletes_sync": 2})
    assert len(missing_cuts(stores)) == 1

    assert reconcile(stores).differences == ()

    assert cuts(stores) == before


def test_an_adoption_that_clickhouse_has_lost_comes_back(stores: Stores, copy: Stores) -> None:
    """ClickHouse was restored from a backup of before it: a comparison has the old instance refused again."""
    relay(stores, until_empty=True)
    adopt(copy)
    wanted = cuts(copy)
    stores.client.run(
        "DELETE FROM {ledger:Identifier} WHERE batch_id = {batch_id:UUID}",
        {"batch_id": str(ADOPTION)},
        settings={"lightweight_deletes_sync": 2},
    )

    reconcile(copy)

    publish(stores.engine, 2)
    with pytest.raises(WitnessError, match="was adopted"):
        relay(stores, until_empty=True)
    assert cuts(copy) == wanted
    assert len(delivered_ids(stores.client)) == 5


def test_a_batch_of_before_gets_its_number_at_its_next_attempt(stores: Stores) -> None:
    """What an earlier version has cut, or delivered, is put on record like any other when it is sent."""
    delivered_batches(stores, (2,))
    publish(stores.engine, 2)
    cut_batches(stores.engine, stores.settings, limit=1)
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET cut_number = NULL"))
        connection.execute(text("UPDATE outbox.unclaimed SET last_cut_number = 0"))
    stores.client.run("TRUNCATE TABLE {ledger:Identifier}")

    relay(stores, until_empty=True)
    list(replay(stores, all_batches(stores)[:1], reload=True))

    assert {cut.cut_number for cut in cuts(stores)} == {1, 2}
    assert cuts(stores) == {Cut(batch.cut_number or 0, batch.batch_id) for batch in all_batches(stores)}
    assert_each_exactly_once(stores.engine, stores.client)


def test_the_error_leaves_the_batch_to_be_tried_again(stores: Stores, copy: Stores) -> None:
    """It is not to blame: with one failure allowed it is not parked, and what it holds comes after an adoption."""
    delivery = start(copy)
    impatient = copy.settings.model_copy(update={"max_attempts": 1})
    delivery.stores = replace(delivery.stores, settings=impatient)
    relay(stores, until_empty=True)
    new = publish(copy.engine, 1)
    with pytest.raises(WitnessError) as error:
        deliver(delivery)

    assert end_failed(delivery, error.value) == BatchStatus.FAILED
    adopt(copy)
    relay(copy, until_empty=True)
    assert sorted(delivered_ids(stores.client)) == sorted({*committed_ids(stores.engine), *new})


def test_a_prune_keeps_what_is_needed(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers at and above the oldest open batch stay, so do the last ones and adoptions; the rest goes."""
    monkeypatch.setattr(numbers, "KEPT_NUMBERS", 2)
    monkeypatch.setattr(retention, "_REST", 0)
    settings = stores.settings.model_copy(update={"retention_days": 1})
    delivered_batches(stores, (1, 1, 1, 1))
    add_cuts(stores.client, [Cut(0, ADOPTION)], ledger_id_of(stores))
    oldest = all_batches(stores)[1]
    parked = "UPDATE outbox.batch SET status = 'parked' WHERE batch_id = :batch_id"
    move_by_hand(stores.engine, parked, {"batch_id": oldest.batch_id})

    prune(replace(stores, settings=settings))
    with_open = {cut.cut_number for cut in cuts(stores)}
    start_unrequested(stores, oldest.batch_id).finish()
    prune(replace(stores, settings=settings))

    assert with_open == {0, 2, 3, 4}
    assert {cut.cut_number for cut in cuts(stores)} == {0, 3, 4}
    assert highest_number(stores.client) == 4


def test_a_prune_at_the_same_moment_is_no_loss(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it drops between the look at the ledger and the one at ClickHouse is not told as lost."""
    monkeypatch.setattr(numbers, "KEPT_NUMBERS", 1)
    retaining = replace(stores, settings=stores.settings.model_copy(update={"retention_days": 1}))
    for _ in range(2):
        publish(stores.engine, 1)
        relay(stores, until_empty=True)
    look = cuts_since

    def look_after_a_prune(client: EventLogClient, number: int) -> Iterator[list[Cut]]:
        monkeypatch.setattr(witness, "cuts_since", look)
        publish(stores.engine, 1)
        relay(stores, until_empty=True)
        prune(retaining)
        return look(client, number)

    monkeypatch.setattr(witness, "cuts_since", look_after_a_prune)

    assert missing_cuts(stores) == []
    assert {cut.cut_number for cut in cuts(stores)} == {3}


def test_the_doctor_names_the_other_instance(stores: Stores, copy: Stores) -> None:
    """Of a ledger that was set back or copied it says the sentence with which deliveries stop."""
    relay(stores, until_empty=True)

    (told,) = [check for check in examine(copy.settings) if check.name == "clickhouse witness"]

    assert (told.ok, "outbox adopt" in told.message) == (False, True)


def test_nothing_is_deleted_where_nothing_is_old(stores: Stores) -> None:
    """Where no number is low enough, ClickHouse is asked for no mutation."""
    delivered_batches(stores, (1,))

    assert drop_cuts(stores.client, below=1) == 0
    mutations = (
        "SELECT count() AS n FROM system.mutations WHERE database = currentDatabase() AND table = {ledger:String}"
    )
    assert stores.client.rows(mutations) == [{"n": 0}]
    assert len(cuts(stores)) == 1
