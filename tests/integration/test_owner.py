"""A source on a table belongs to one ledger: a second one is refused before anything is sent, and spoils nothing."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from sqlalchemy import text
from typer.testing import CliRunner, Result

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.cli.main import app
from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.clickhouse.completeness import read_delivered
from outbox_pipeline.clickhouse.load import seconds_of_insert
from outbox_pipeline.clickhouse.owner import add_claims, new_claim, read_claims
from outbox_pipeline.clickhouse.schema import read_log
from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.errors import ConfigurationError, InDoubtError
from outbox_pipeline.operations import running_inserts
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.owner import find_taking, take_table
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.replay import replay
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay import owner as claiming
from outbox_pipeline.relay.attempts import start_unrequested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.owner import claim_table
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import start
from tests.fixtures.commands import Outbox, run_outbox, set_environment
from tests.fixtures.events import assert_each_exactly_once, committed_ids, delivered_ids, publish
from tests.fixtures.interleave import before_words, note_calls
from tests.fixtures.lives import all_batches, everything
from tests.fixtures.owners import ledger_id_of, owners_of
from tests.unit.test_claims import ORDER

#: What a user can do about a table that is another outbox's.
WAYS_ON = ("OUTBOX_CLICKHOUSE_TABLE", "outbox init --take-table")


#: Whatever would send, compare, delete or tell.
COMMANDS = (
    *("init", "doctor", "relay --until-empty", "up --port 0", "replay --from 2026-01-01 --reload"),
    *("reconcile", "reconcile --repair", "prune", "delivered"),
)


@pytest.fixture
def outbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Outbox]:
    """Run `outbox …` on some stores, without a terminal."""

    def run(on: Stores, *arguments: str) -> Result:
        set_environment(monkeypatch, on.settings, tmp_path / "home")
        monkeypatch.setenv("OUTBOX_DAGSTER_URL", os.environ["OUTBOX_POSTGRES_URL"].replace("+psycopg:", "+psycopg2:"))
        with interrupted_after(60):
            return run_outbox(*arguments)

    yield run
    structlog.reset_defaults()


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """End what runs here as Ctrl-C does when it takes longer: `up` that is not refused would run for ever."""
    timer = threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@pytest.fixture
def moved(stores: Stores, other: Stores) -> Stores:
    """Another outbox, which delivered into a table of its own and whose settings then lead to this one's."""
    publish(other.engine, 2)
    with on_table(other, "other_log") as before:
        relay(before, until_empty=True)
    publish(stores.engine, 3)
    relay(stores, until_empty=True)
    record_completeness(stores)
    publish(other.engine, 1)
    return other


@contextmanager
def on_table(stores: Stores, table: str) -> Iterator[Stores]:
    """Open the same stores with a table of another name."""
    settings = stores.settings.model_copy(update={"clickhouse_table": table})
    client = open_client(settings)
    create_table(client)
    yield replace(stores, client=client, settings=settings)
    client.close()


def told_days(stores: Stores) -> list[object]:
    """Return what analysts are told of each day."""
    return list(read_delivered(stores.client))


def test_a_second_outbox_is_refused(outbox: Outbox, stores: Stores, moved: Stores) -> None:
    """Whatever would send, compare or delete ends with 1 and the sentence that helps; both sides are as they were."""
    before = everything(stores), everything(moved), told_days(stores)

    results = {command: outbox(moved, *command.split()) for command in COMMANDS}

    assert [command for command, result in results.items() if result.exit_code != 1] == []
    wanted = ("belongs to another outbox", *WAYS_ON)
    said = {command: " ".join(result.output.split()) for command, result in results.items()}
    assert [command for command in said if not all(word in said[command] for word in wanted)] == []
    assert (everything(stores), everything(moved), told_days(stores)) == before


def test_a_table_of_another_outbox_is_not_adopted_from(outbox: Outbox, stores: Stores, moved: Stores) -> None:
    """What stands in it was delivered by no old instance of this ledger."""
    with moved.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.unclaimed SET timeline = timeline + 1"))
    before = everything(stores), everything(moved)

    result = outbox(moved, "adopt", "--dry-run")

    assert result.exit_code == 1
    assert "belongs to another outbox" in result.stderr
    assert (everything(stores), everything(moved)) == before


def test_an_embedded_table_belongs_to_one_outbox_too(
    stores: Stores, other: Stores, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine of a home makes its table by itself; the first to deliver claims it, another database is refused."""
    monkeypatch.setenv("OUTBOX_HOME", str(own_home))
    monkeypatch.delenv("OUTBOX_CLICKHOUSE_URL", raising=False)

    def run(on: Stores, *arguments: str) -> Result:
        assert on.settings.postgres_url
        monkeypatch.setenv("OUTBOX_POSTGRES_URL", on.settings.postgres_url.get_secret_value())
        return CliRunner().invoke(app, arguments)

    publish(stores.engine, 3)
    publish(other.engine, 2)
    with embedded_engines(own_home, postgres=False):
        first, second = (run(each, "relay") for each in (stores, other))
        shown = run(stores, "sql", "--format", "TabSeparated", "SELECT event_id FROM event_log")
    structlog.reset_defaults()

    assert (first.exit_code, second.exit_code) == (0, 1)
    assert "belongs to another outbox" in second.stderr
    assert sorted(shown.stdout.split()) == sorted(map(str, committed_ids(stores.engine)))


def test_after_the_refusal_both_outboxes_are_right(outbox: Outbox, stores: Stores, moved: Stores) -> None:
    """The first one's days and comparison are its own, and the second delivers into a table of its own."""
    outbox(moved, "relay", "--until-empty")
    outbox(moved, "delivered")
    publish(stores.engine, 2)
    relay(stores, until_empty=True)
    record_completeness(stores)
    found = reconcile(stores)

    assert (found.is_clean, found.unknown) == (True, ())
    assert [day.event_count for day in read_delivered(stores.client)] == [5]
    assert_each_exactly_once(stores.engine, stores.client)
    with on_table(moved, "other_log") as own:
        relay(own, until_empty=True)
        assert_each_exactly_once(own.engine, own.client)


@pytest.mark.parametrize("act", [relay, record_completeness, start])
def test_a_table_without_an_owner_belongs_to_the_first_that_writes(
    stores: Stores, other: Stores, act: Callable[[Stores], object]
) -> None:
    """A relay, a run of Dagster or a write of the days claims it, once, and the other outbox is refused."""
    publish(stores.engine, 3)
    end = act(stores)
    claims = read_claims(stores.client)
    if isinstance(end, Delivery):
        end.finish()
    relay(stores)

    assert [claim.ledger_id for claim in claims] == [ledger_id_of(stores)]
    publish(other.engine, 1)
    with pytest.raises(ConfigurationError, match="belongs to another outbox"):
        relay(other)

    assert read_claims(stores.client) == claims


def test_a_look_claims_nothing(outbox: Outbox, stores: Stores) -> None:
    """To compare, to prune and to examine leave a table without an owner as it is."""
    codes = [outbox(stores, *command).exit_code for command in (["reconcile"], ["prune"])]
    examined = outbox(stores, "doctor")

    assert codes == [0, 0]
    assert "belongs to no outbox yet" in " ".join(examined.output.split())
    assert read_claims(stores.client) == []


def test_of_two_at_once_no_two_deliver(stores: Stores, other: Stores) -> None:
    """Both have seen no owner and both have written: one at least is refused, and a repetition succeeds for one."""
    for each in (stores, other):
        publish(each.engine, 3)
    both = threading.Barrier(2, timeout=60)

    def meet(point: Point) -> None:
        if point in (Point.CLAIMING, Point.CLAIMED):
            both.wait()

    end = listen(meet)
    try:
        with ThreadPoolExecutor(2) as threads:
            outcomes = list(threads.map(refusal_of, (stores, other)))
    finally:
        end()
    winners = [ledger_id_of(each) for each, said in zip((stores, other), outcomes, strict=True) if said is None]

    assert owners_of(stores) == winners
    assert len(winners) <= 1
    assert all("at the same moment" in said for said in outcomes if said)
    again = [refusal_of(each) for each in (stores, other)]
    (owner,) = [each for each, said in zip((stores, other), again, strict=True) if said is None]
    assert owners_of(stores) == [ledger_id_of(owner)]
    assert_each_exactly_once(owner.engine, owner.client)


def refusal_of(each: Stores) -> str | None:
    """Relay all there is; return why that was refused, None when it was not."""
    try:
        relay(each, until_empty=True)
    except ConfigurationError as error:
        return str(error)
    return None


def test_the_steps_of_a_claim_are_in_the_order_of_the_model(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read, written, read again, and only then confirmed; the table holds at each point what its name says."""
    steps: list[str] = []
    held: dict[Point, list[bool]] = {}
    for name, before in (("read_claims", "read"), ("add_claims", "write"), ("confirm_claim", "confirm")):
        note_calls(monkeypatch, claiming, name, before=before, steps=steps)

    def look(point: Point) -> None:
        steps.append(point)
        held[point] = [claim.is_confirmed for claim in read_claims(stores.client)]

    end = listen(look)
    claim_table(stores)
    claimed = [claim.is_confirmed for claim in read_claims(stores.client)]
    end()

    read, write, again, confirm, _ = ("read" if step == "look" else step for step in ORDER)
    assert steps == [read, Point.CLAIMING, write, Point.CLAIMED, again, Point.LOOKED_AGAIN, confirm]
    assert held == {Point.CLAIMING: [], Point.CLAIMED: [False], Point.LOOKED_AGAIN: [False]}
    assert claimed == [True]


def test_a_rival_between_claim_and_second_look_is_refused(stores: Stores, other: Stores) -> None:
    """Who sees a claim writes none; the first one goes on."""
    publish(stores.engine, 3)
    refused: list[str] = []

    def rival(point: Point) -> None:
        if point == Point.CLAIMED:
            with pytest.raises(ConfigurationError) as error:
                claim_table(other)
            refused.append(str(error.value))

    end = listen(rival)
    try:
        relay(stores, until_empty=True)
    finally:
        end()

    assert len(refused) == 1
    assert owners_of(stores) == [ledger_id_of(stores)]
    assert_each_exactly_once(stores.engine, stores.client)


def test_taking_a_table_asks_first(outbox: Outbox, stores: Stores, moved: Stores) -> None:
    """Without a terminal it wants --yes, says what stays, and changes nothing."""
    before = everything(stores), read_claims(stores.client), told_days(stores)

    result = outbox(moved, "init", "--take-table")

    assert result.exit_code == 2
    assert "Of no batch of this ledger in it: 3 rows." in result.stderr
    assert "repeat with --yes" in result.stderr
    assert (everything(stores), read_claims(stores.client), told_days(stores)) == before


def test_a_taken_table_is_the_new_outbox_s(outbox: Outbox, stores: Stores, moved: Stores) -> None:
    """Its rows stay, the taker delivers, its days are told without the other's, and the other one is refused."""
    theirs = delivered_ids(stores.client)
    publish(stores.engine, 1)

    taken = outbox(moved, "init", "--take-table", "--yes")
    again = outbox(moved, "init", "--take-table", "--yes")
    relay(moved, until_empty=True)
    days = read_delivered(moved.client)
    record_completeness(moved)
    refused = [outbox(stores, *command) for command in (["relay"], ["init"], ["delivered"])]

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
    publish(stores.engine, 3)
    relay(stores, until_empty=True)
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
    publish(stores.engine, 3)
    relay(stores, until_empty=True)

    with (
        before_words(stores.engine, "FROM outbox.watermark", lambda: take_table(other)),
        pytest.raises(ConfigurationError, match="not this outbox's"),
    ):
        record_completeness(stores)

    assert told_days(other) == []


def test_nothing_is_made_before_the_taking_is_agreed_to(outbox: Outbox, stores: Stores, other: Stores) -> None:
    """Without a yes the owner's lost log stays lost."""
    publish(stores.engine, 3)
    relay(stores, until_empty=True)
    stores.client.run("DROP TABLE {table:Identifier}")

    refused = outbox(other, "init", "--take-table")
    owner = outbox(stores, "relay")

    assert (refused.exit_code, owner.exit_code) == (2, 1)
    assert "'outbox init --recreate-log'" in owner.stderr


def test_a_lost_log_of_another_outbox_is_not_made_again(outbox: Outbox, stores: Stores, other: Stores) -> None:
    """A refused init makes and migrates nothing there, so the owner goes on learning that its log is lost."""
    publish(stores.engine, 3)
    relay(stores, until_empty=True)
    stores.client.run("DROP TABLE {table:Identifier}")

    refused = outbox(other, "init")
    owner = outbox(stores, "relay")

    assert (refused.exit_code, owner.exit_code) == (1, 1)
    assert "belongs to another outbox" in refused.stderr
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
    publish(stores.engine, 3)
    relay(stores)
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
        view = f"CREATE MATERIALIZED VIEW {name} ENGINE = Null AS SELECT sleep(3) FROM {{table:Identifier}}"
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


def test_rows_of_an_unknown_ledger_are_not_claimed_silently(outbox: Outbox, stores: Stores, other: Stores) -> None:
    """Where the claims are lost a stranger is refused with the number of rows, and makes nothing; the owner is not."""
    publish(stores.engine, 3)
    relay(stores, until_empty=True)
    stores.client.run("DROP TABLE {sources:Identifier}")

    refused = outbox(other, "init")
    tables = read_log(stores.client).tables
    mine = outbox(stores, "init")

    assert refused.exit_code == 1
    said = " ".join(refused.stderr.split())
    assert "belongs to no outbox, but holds 3 rows of batches that this ledger does not know" in said
    assert all(word in said for word in WAYS_ON)
    assert "sources" not in tables
    assert mine.exit_code == 0, mine.output
    assert owners_of(stores) == [ledger_id_of(stores)]


def test_rows_of_an_unknown_ledger_are_taken_on_purpose(outbox: Outbox, stores: Stores, other: Stores) -> None:
    """No worker claims them either; `--take-table` names them and asks, and the owner has lost the table then."""
    publish(stores.engine, 3)
    relay(stores, until_empty=True)
    stores.client.run("TRUNCATE TABLE {sources:Identifier}")
    publish(other.engine, 2)

    with pytest.raises(ConfigurationError, match="3 rows of batches that this ledger does not know"):
        relay(other)
    asked = outbox(other, "init", "--take-table")
    unclaimed = read_claims(other.client)
    taken = outbox(other, "init", "--take-table", "--yes")
    relay(other, until_empty=True)

    assert (asked.exit_code, unclaimed) == (2, [])
    assert "belongs to no outbox. Of no batch of this ledger in it: 3 rows." in asked.stderr
    assert taken.exit_code == 0, taken.output
    assert owners_of(other) == [ledger_id_of(other)]
    assert committed_ids(other.engine) < set(delivered_ids(other.client))
    with pytest.raises(ConfigurationError, match="belongs to another outbox"):
        relay(stores)


def test_no_worker_relies_on_a_claim_that_its_sibling_may_take_back(stores: Stores, other: Stores) -> None:
    """Two workers of one ledger and one of another at the first claim: rows of one ledger alone are in the table."""
    publish(stores.engine, 3)
    publish(other.engine, 2)
    done: list[str] = []

    def sibling(point: Point) -> None:
        # While the first has written its claim and not looked again: a sibling delivers, and the other ledger,
        # which had seen no claim before, writes its own.
        if point == Point.CLAIMED and not done:
            done.append("met")
            relay(stores, until_empty=True)
            add_claims(other.client, [new_claim(other.client, ledger_id_of(other), "the other")])

    end = listen(sibling)
    try:
        with pytest.raises(ConfigurationError, match="at the same moment"):
            claim_table(stores)
    finally:
        end()
    with suppress(ConfigurationError):
        relay(other, until_empty=True)

    in_log = set(delivered_ids(stores.client))
    assert done
    assert not (in_log & committed_ids(stores.engine) and in_log & committed_ids(other.engine))


def test_a_replay_proves_nothing_in_a_table_that_was_taken(stores: Stores, other: Stores) -> None:
    """Not even a batch whose rows are still there as they were sent: the table is another outbox's."""
    publish(stores.engine, 3)
    relay(stores, until_empty=True)
    take_table(other)
    before = all_batches(stores)

    with pytest.raises(ConfigurationError, match="belongs to another outbox"):
        list(replay(stores, before))

    assert all_batches(stores) == before


def test_a_claim_beside_another_one_is_taken_back(stores: Stores, other: Stores) -> None:
    """What stands there afterwards is the other's alone, until it is taken on purpose."""
    outcomes: list[str] = []

    def rival(point: Point) -> None:
        if point == Point.CLAIMED and not outcomes:
            outcomes.append("claimed")
            add_claims(other.client, [new_claim(other.client, ledger_id_of(other), "the other")])

    end = listen(rival)
    try:
        with pytest.raises(ConfigurationError, match="at the same moment"):
            claim_table(stores)
    finally:
        end()
    left = owners_of(stores)
    found = find_taking(stores)
    take_table(stores)

    assert left == [ledger_id_of(other)]
    assert found is not None
    assert [claim.label for claim in found.previous] == ["the other"]
    assert owners_of(stores) == [ledger_id_of(stores)]


def test_two_claims_left_by_a_crash_end_with_a_taking(stores: Stores, other: Stores) -> None:
    """Neither of two ledgers on record delivers until one of them takes the table, as the sentence says."""
    add_claims(stores.client, [new_claim(stores.client, ledger_id_of(each), "left") for each in (stores, other)])
    publish(stores.engine, 3)

    for each in (stores, other):
        with pytest.raises(ConfigurationError, match=r"claimed by this outbox and by another .* --take-table' for"):
            relay(each)
    take_table(stores)
    relay(stores, until_empty=True)

    assert owners_of(stores) == [ledger_id_of(stores)]
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_table_of_before_is_claimed_by_init(outbox: Outbox, stores: Stores, other: Stores) -> None:
    """Without the table of owners nothing is delivered; `outbox init` makes it and claims, once."""
    publish(stores.engine, 3)
    for role in ("sources", "migrations"):
        stores.client.run(f"DROP TABLE {{{role}:Identifier}}")
    with pytest.raises(ConfigurationError, match="run 'outbox init'"):
        relay(stores)

    codes = [outbox(each, "init").exit_code for each in (stores, stores, other)]
    relay(stores, until_empty=True)

    assert codes == [0, 0, 1]
    assert len(read_claims(stores.client)) == 1
    assert_each_exactly_once(stores.engine, stores.client)


def test_the_doctor_says_whose_the_table_is(outbox: Outbox, stores: Stores, other: Stores) -> None:
    """It is fine for the owner; for another outbox it names the owner's database without user or password."""
    relay(stores)

    mine, theirs = outbox(stores, "doctor"), outbox(other, "doctor")

    assert "belongs to this outbox" in mine.output
    assert theirs.exit_code == 1
    assert f"another outbox (postgresql:///{stores.engine.url.database}," in " ".join(theirs.output.split())


def test_claims_of_another_source_are_not_this_one_s(stores: Stores, other: Stores) -> None:
    """Each source has an owner of its own."""
    shop = stores.client.of_source("shop")
    add_claims(shop, [new_claim(shop, ledger_id_of(other), "the shop's")])
    publish(stores.engine, 3)

    relay(stores, until_empty=True)

    assert owners_of(stores) == [ledger_id_of(stores)]
    assert [claim.ledger_id for claim in read_claims(shop)] == [ledger_id_of(other)]
    assert_each_exactly_once(stores.engine, stores.client)
