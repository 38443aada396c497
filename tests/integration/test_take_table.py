"""`outbox init --take-table`: it asks first, and what the old owner has on its way is refused from then on."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.clickhouse.completeness import read_delivered
from outbox_pipeline.clickhouse.load import seconds_of_insert
from outbox_pipeline.clickhouse.owner import add_claims, read_claims
from outbox_pipeline.errors import ConfigurationError, InDoubtError
from outbox_pipeline.operations import running_inserts
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.owner import take_table
from outbox_pipeline.operations.replay import replay
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.attempts import start_unrequested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import start
from tests.fixtures.commands import Outbox
from tests.fixtures.events import assert_each_exactly_once, committed_ids, delivered_ids, publish
from tests.fixtures.instances import all_batches, everything
from tests.fixtures.interleave import before_words
from tests.fixtures.owners import WAYS_ON, ledger_id_of, owners_of, told_days
from tests.fixtures.snapshots import delivered_batches


def test_taking_a_table_asks_first(outbox_on: Outbox, stores: Stores, moved: Stores) -> None:
    """Without a terminal it wants --yes, says what stays, and changes nothing."""
    before = everything(stores), read_claims(stores.client), told_days(stores)

    result = outbox_on(moved, "init", "--take-table")

    assert result.exit_code == 2
    assert "Of no batch of this ledger in it: 3 rows." in result.stderr
    assert "repeat with --yes" in result.stderr
    assert (everything(stores), read_claims(stores.client), told_days(stores)) == before


def test_a_taken_table_is_the_new_outbox_s(outbox_on: Outbox, stores: Stores, moved: Stores) -> None:
    """Its rows stay, the taker delivers, its days are told without the other's, and the other one is refused."""
    theirs = delivered_ids(stores.client)
    publish(stores.engine, 1)

    taken = outbox_on(moved, "init", "--take-table", "--yes")
    again = outbox_on(moved, "init", "--take-table", "--yes")
    relay(moved, until_empty=True)
    days = read_delivered(moved.client)
    record_completeness(moved)
    refused = [outbox_on(stores, *command) for command in (["relay"], ["init"], ["delivered"])]

    assert (taken.exit_code, again.exit_code) == (0, 0), taken.output
    assert "Of no batch of this ledger in it: 3 rows." in taken.stderr
    assert again.stderr == ""
    assert owners_of(moved) == [ledger_id_of(moved)]
    assert days == []
    assert [day.event_count for day in read_delivered(moved.client)] == [3]
    assert [result.exit_code for result in refused] == [1, 1, 1]
    # The two events of before were delivered into the table of before.
    new = [event_id for event_id in delivered_ids(moved.client) if event_id not in theirs]
    assert (len(new), set(new) < committed_ids(moved.engine)) == (1, True)


def test_a_run_by_hand_takes_no_lease_on_another_s_table(stores: Stores, moved: Stores) -> None:
    """It is refused before the attempt begins: no attempt is counted and no fence is raised."""
    cut_batches(moved.engine, moved.settings, limit=1)
    pending = [batch for batch in all_batches(moved) if batch.status == BatchStatus.CUT]

    for batch in pending:
        with pytest.raises(ConfigurationError, match="belongs to another outbox"):
            start_unrequested(moved, batch.batch_id, run_id="a run by hand")

    after = [(batch.status, batch.attempt) for batch in all_batches(moved) if batch in pending]
    assert after == [(BatchStatus.CUT, 0)]


def test_what_the_old_one_told_of_days_goes_though_the_taking_is_killed(stores: Stores, other: Stores) -> None:
    """A process that ends right behind its claim leaves no day of the other outbox; the repeat has nothing to do."""
    delivered_batches(stores, (3,))
    record_completeness(stores)

    def die(point: Point) -> None:
        if point == Point.CLAIMED:
            raise KeyboardInterrupt

    stop = listen(die)
    with pytest.raises(KeyboardInterrupt):
        take_table(other)
    stop()
    take_table(other)

    assert owners_of(other) == [ledger_id_of(other)]
    assert told_days(other) == []


def test_days_on_their_way_are_refused_once_the_table_is_taken(stores: Stores, other: Stores) -> None:
    """A writer that had looked before tells nothing of its days: ClickHouse itself refuses it."""
    delivered_batches(stores, (3,))

    with (
        before_words(stores.engine, "FROM outbox.watermark", lambda: take_table(other)),
        pytest.raises(ConfigurationError, match="not this outbox's"),
    ):
        record_completeness(stores)

    assert told_days(other) == []


def test_nothing_is_made_before_the_taking_is_agreed_to(outbox_on: Outbox, stores: Stores, other: Stores) -> None:
    """Without a yes the owner's lost log stays lost."""
    delivered_batches(stores, (3,))
    stores.client.run("DROP TABLE {table:Identifier}")

    refused = outbox_on(other, "init", "--take-table")
    owner = outbox_on(stores, "relay")

    assert (refused.exit_code, owner.exit_code) == (2, 1)
    assert "'outbox init --recreate-log'" in owner.stderr


def test_an_insert_on_its_way_is_refused_once_the_table_is_taken(stores: Stores, other: Stores) -> None:
    """A delivery that had looked before leaves no row: ClickHouse itself refuses it, and its batch is kept."""
    publish(stores.engine, 3)
    delivery = start(stores)
    delivery.prepare()
    take_table(other)

    with pytest.raises(ConfigurationError, match="not this outbox's") as refused:
        delivery.finish()
    delivery.close()

    assert all(word in str(refused.value) for word in WAYS_ON)
    assert delivered_ids(stores.client) == []
    take_table(stores)
    assert [batch.status for batch in all_batches(stores)] == [BatchStatus.DELIVERING]


def test_a_ledger_that_lost_its_table_does_not_come_back_by_itself(stores: Stores, other: Stores) -> None:
    """Not even when the taker has no claim any more; taken back on purpose it delivers, each event once."""
    delivered_batches(stores, (3,))
    take_table(other)
    (claim,) = [claim for claim in read_claims(other.client) if claim.ledger_id == ledger_id_of(other)]
    add_claims(other.client, [], retiring=[claim])

    publish(stores.engine, 1)
    with pytest.raises(ConfigurationError, match="was taken from this outbox"):
        relay(stores)
    take_table(stores)
    relay(stores, until_empty=True)

    assert owners_of(stores) == [ledger_id_of(stores)]
    assert_each_exactly_once(stores.engine, stores.client)


def test_an_insert_begun_before_the_taking_has_ended_when_the_table_is_taken(
    stores: Stores, other: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the old outbox arrives later; what takes too long is said, and a repetition waits for it."""
    publish(stores.engine, 3)
    delivery = start(stores)
    delivery.prepare()
    # Each insert takes seconds, in views of the user's.
    for name in ("slow", "slower"):
        view = f"CREATE MATERIALIZED VIEW {name} ENGINE = Null AS SELECT sleep(2) FROM {{table:Identifier}}"
        stores.client.run(view)

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(delivery.finish)
        assert wait_until(lambda: seconds_of_insert(stores.client, not_of=ledger_id_of(other)) is not None, seconds=60)
        own = seconds_of_insert(stores.client, not_of=ledger_id_of(stores))
        another_source = seconds_of_insert(stores.client.of_source("shop"), not_of=ledger_id_of(other))
        monkeypatch.setattr(running_inserts, "MAX_SECONDS", 0)
        with pytest.raises(InDoubtError, match=r"repeat 'outbox init --take-table'"):
            take_table(other)
        owners = owners_of(other)
        monkeypatch.undo()
        take_table(other)
        still = seconds_of_insert(stores.client, not_of=ledger_id_of(other))
        arrived = len(delivered_ids(other.client))
        running.result()

    assert (own, another_source, still) == (None, None, None)
    assert owners == [ledger_id_of(other)]
    assert arrived == 3


def test_rows_of_an_unknown_ledger_are_taken_on_purpose(outbox_on: Outbox, stores: Stores, other: Stores) -> None:
    """No worker claims them either; `--take-table` names them and asks, and the owner has lost the table then."""
    delivered_batches(stores, (3,))
    stores.client.run("TRUNCATE TABLE {sources:Identifier}")
    publish(other.engine, 2)

    with pytest.raises(ConfigurationError, match="3 rows of batches that this ledger does not know"):
        relay(other)
    asked = outbox_on(other, "init", "--take-table")
    unclaimed = read_claims(other.client)
    taken = outbox_on(other, "init", "--take-table", "--yes")
    relay(other, until_empty=True)

    assert (asked.exit_code, unclaimed) == (2, [])
    assert "belongs to no outbox. Of no batch of this ledger in it: 3 rows." in asked.stderr
    assert taken.exit_code == 0, taken.output
    assert owners_of(other) == [ledger_id_of(other)]
    assert committed_ids(other.engine) < set(delivered_ids(other.client))
    with pytest.raises(ConfigurationError, match="belongs to another outbox"):
        relay(stores)


def test_a_replay_proves_nothing_in_a_table_that_was_taken(stores: Stores, other: Stores) -> None:
    """Not even a batch whose rows are still there as they were sent: the table is another outbox's."""
    delivered_batches(stores, (3,))
    take_table(other)
    before = all_batches(stores)

    with pytest.raises(ConfigurationError, match="belongs to another outbox"):
        list(replay(stores, before))

    assert all_batches(stores) == before
