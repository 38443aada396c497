"""`outbox adopt` happens once, on a yes, whole or not at all."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from outbox_pipeline.clickhouse.batch_contents import fenced_attempts
from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.clickhouse.load import seconds_of_insert
from outbox_pipeline.clickhouse.witness import ADOPTION, Cut, add_cuts, highest_number
from outbox_pipeline.errors import InDoubtError, OutboxError, WitnessError
from outbox_pipeline.ids import uuid7
from outbox_pipeline.operations import running_inserts
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.operations.owner import take_table
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.attempts import end_failed, request_batches, start_requested
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.stores import Stores
from tests.fixtures.children import recover
from tests.fixtures.commands import run_outbox
from tests.fixtures.events import assert_each_exactly_once, delivered_ids, publish, publish_in
from tests.fixtures.instances import Restore, assert_whole, back_up, everything, mixed_instances, value, whole_ledger
from tests.fixtures.interleave import before_words
from tests.fixtures.owners import ledger_id_of

pytestmark = pytest.mark.embedded_only


def test_adopting_again_changes_nothing(stores: Stores, restore: Restore, backup: Path) -> None:
    """A ledger that is its cluster's own and that ClickHouse contradicts no more is left as it is."""
    publish(stores.engine, 3)
    here = restore(back_up(stores, backup))
    relay(stores, until_empty=True)
    adopt(here)
    before = everything(here)

    again = adopt(here)

    assert again.was_own
    assert everything(here) == before


def test_a_dry_run_changes_nothing_and_tells_the_same(stores: Stores, restore: Restore, backup: Path) -> None:
    """What a dry run says is what adopting then does."""
    here, _ = mixed_instances(stores, restore, backup)
    before = everything(here)

    found = adopt(here, dry_run=True)
    after = everything(here)
    done = adopt(here)

    assert after == before
    assert found == replace(done, is_dry_run=True)


def test_a_dry_run_on_a_copy_changes_nothing_on_either_side(stores: Stores, copy: Stores) -> None:
    """Also where only ClickHouse contradicts the ledger, and a batch that was frozen here would be taken back."""
    with closing(start(copy)) as stopped:
        stopped.prepare()
    relay(stores, until_empty=True)
    before = everything(copy)

    found = adopt(copy, dry_run=True)

    assert everything(copy) == before
    assert found == replace(adopt(copy), is_dry_run=True)


def start(instance: Stores) -> Delivery:
    """Cut what is pending and begin the first attempt."""
    cut_batches(instance.engine, instance.settings, limit=1)
    (request,) = request_batches(instance.engine, instance.settings, limit=1)
    return start_requested(instance, request.batch_id, request.attempt)


@pytest.mark.parametrize("own_count", [0, 2])
@pytest.mark.parametrize(
    ("steps", "is_living"),
    [(("extract",), True), (("extract", "validate"), True), (("extract",), False)],
    ids=["extracted", "frozen", "ended"],
)
def test_a_batch_that_was_stopped_gives_back_what_the_other_delivered(
    stores: Stores, copy: Stores, steps: tuple[str, ...], is_living: bool, own_count: int
) -> None:
    """Cut here and perhaps frozen, it loses what is delivered; an attempt at work on it comes to nothing.

    One that has ended had frozen its batch before it was stopped, so how far it was before is all the same.
    """
    publish(copy.engine, own_count)
    delivery = start(copy)
    for step in steps:
        getattr(delivery, step)()
    relay(stores, until_empty=True)
    if not is_living:
        with pytest.raises(WitnessError) as stopped:
            deliver(delivery)
        end_failed(delivery, stopped.value)

    result = adopt(copy)
    if is_living:
        # With the events that it has in memory.
        with pytest.raises(OutboxError) as refused:
            delivery.finish()
        end_failed(delivery, refused.value)
    fenced = {batch_id: attempt for block in fenced_attempts(copy.client) for batch_id, attempt in block.items()}
    done = relay(copy, until_empty=True)

    is_frozen = not is_living or "validate" in steps
    assert (result.adopted_events, result.withdrawn_batches, result.doubled_events) == (3, int(is_frozen), 0)
    assert (fenced.get(delivery.lease.batch_id, 0) > delivery.lease.attempt) is is_frozen
    assert done.failures == ()
    assert_whole(copy)


def test_an_attempt_past_its_look_is_refused_by_clickhouse(stores: Stores, copy: Stores) -> None:
    """Nothing was on record when it looked; adopted between that and its first byte, it sends nothing."""
    delivery, other = start(copy), start(stores)

    def take_over(point: Point) -> None:
        if point == Point.SENDING:
            end()
            with pytest.raises(WitnessError):
                deliver(other)
            adopt(copy)

    end = listen(take_over)
    with pytest.raises(WitnessError, match="refused the insert") as refused:
        deliver(delivery)
    end_failed(delivery, refused.value)
    arrived = delivered_ids(copy.client)
    recover(copy)

    assert len(arrived) == 2
    assert_whole(copy)


def test_a_batch_in_clickhouse_stays_what_it_is(stores: Stores, copy: Stores) -> None:
    """Sent before the adoption and not marked yet, it keeps its events, and the attempt that sent it marks it."""
    delivery = start(copy)
    delivery.load()
    with pytest.raises(WitnessError):
        relay(stores, until_empty=True)

    result = adopt(copy)
    delivery.mark()

    assert (result.withdrawn_batches, result.adopted_batches) == (0, 0)
    assert_whole(copy)


def test_a_transaction_of_this_server_still_fills_its_gap(stores: Stores, copy: Stores) -> None:
    """A gap of a ledger that is its own has a living holder: what that commits after the adoption is delivered."""
    with copy.engine.connect() as late:
        publish_in(late)
        publish(copy.engine, 1)
        cut_batches(copy.engine, copy.settings, limit=1)
        relay(stores, until_empty=True)
        result = adopt(copy)
        relay(copy, until_empty=True)
        late.commit()
    relay(copy, until_empty=True)

    assert (result.adopted_events, result.gap_count) == (3, 1)
    assert_whole(copy)


def test_an_adoption_that_breaks_off_is_repeated(stores: Stores, copy: Stores) -> None:
    """Until the ledger has committed it, it stays stopped, and the repetition takes a higher number."""
    relay(stores, until_empty=True)

    def die() -> None:
        raise KeyboardInterrupt

    with before_words(copy.engine, "witness_floor = ", die), pytest.raises(KeyboardInterrupt):
        adopt(copy)
    with pytest.raises(WitnessError, match="outbox adopt"):
        relay(copy, until_empty=True)
    adopt(copy)
    publish(copy.engine, 1)
    relay(copy, until_empty=True)

    assert numbers_of(copy) == (4, 5)
    assert highest_number(copy.client) == 5
    assert_whole(copy)


def numbers_of(instance: Stores) -> tuple[object, object]:
    """Return the number of the ledger's adoption and its highest."""
    floor, last = (
        value(instance, f"SELECT {column} FROM outbox.unclaimed") for column in ("witness_floor", "last_cut_number")
    )
    return floor, last


@pytest.mark.parametrize("written", [Cut(4, uuid7()), Cut(4, ADOPTION), Cut(3, ADOPTION)])
def test_what_another_instance_writes_meanwhile_stops_the_adoption(stores: Stores, copy: Stores, written: Cut) -> None:
    """It still works, or is adopted at the same moment under the same number: nothing is changed here."""
    relay(stores, until_empty=True)
    before = whole_ledger(copy)

    def go_on() -> None:
        add_cuts(stores.client, [written], ledger_id_of(stores))

    with before_words(copy.engine, "shown_row", go_on), pytest.raises(InDoubtError, match="still works"):
        adopt(copy)

    assert whole_ledger(copy) == before


def test_an_insert_that_has_begun_is_waited_for(stores: Stores, copy: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other instance still writes is seen; what takes too long is said, and nothing is changed."""
    delivery = start(stores)
    delivery.prepare()
    stores.client.run("CREATE MATERIALIZED VIEW slow ENGINE = Null AS SELECT sleep(3) FROM {table:Identifier}")
    other = open_client(stores.settings)
    before = whole_ledger(copy)

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(delivery._send, delivery.batch(), 0)
        assert wait_until(lambda: seconds_of_insert(other) is not None, seconds=60)
        monkeypatch.setattr(running_inserts, "MAX_SECONDS", 0)
        with pytest.raises(InDoubtError, match="repeat 'outbox adopt'"):
            adopt(replace(copy, client=other))
        refused = whole_ledger(copy)
        monkeypatch.undo()
        result = adopt(replace(copy, client=other))
        running.result()
    delivery.close()
    other.close()

    assert refused == before
    assert result.adopted_events == 3
    assert_each_exactly_once(copy.engine, copy.client)


def test_a_ledger_that_got_another_id_learns_what_the_old_one_delivered(stores: Stores, copy: Stores) -> None:
    """As a backup of before ledgers had one does: taking the table settles what is pending here and delivered there."""
    with copy.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.unclaimed SET ledger_id = gen_random_uuid()"))
    relay(stores, until_empty=True)

    take_table(copy)
    relay(copy, until_empty=True)

    assert_whole(copy)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run `outbox adopt` on an instance and return exit code, stdout and stderr."""

    def run(instance: Stores, *arguments: str, clickhouse_url: SecretStr | None = None) -> tuple[int, str, str]:
        urls = {
            "POSTGRES": instance.settings.postgres_url,
            "CLICKHOUSE": clickhouse_url or instance.settings.clickhouse_url,
        }
        for name, url in urls.items():
            assert url
            monkeypatch.setenv(f"OUTBOX_{name}_URL", url.get_secret_value())
        result = run_outbox("adopt", *arguments)
        return result.exit_code, result.stdout, result.stderr

    return run


def test_the_command_needs_a_yes(
    stores: Stores, restore: Restore, backup: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    """Without a terminal and --yes nothing is adopted; with --yes it is, and a second call says that it was."""
    publish(stores.engine, 3)
    here = restore(back_up(stores, backup))
    relay(stores, until_empty=True)
    before = everything(here)

    refused = command(here)
    after = everything(here)
    adopted = command(here, "--yes")
    again = command(here)

    assert refused[:2] == (2, "")
    assert "3 events in 1 batch" in refused[2]
    assert "dry run" not in refused[2]
    assert refused[2].splitlines()[-1] == (
        "There is no terminal to ask on: when the old instance is stopped for good and this copy shall take over, "
        "repeat with --yes."
    )
    assert after == before
    assert adopted[0] == 0
    assert "3 events in 1 batch" in adopted[1]
    assert again[0] == 0
    assert "nothing to adopt" in again[1]
    assert_whole(here)


@pytest.mark.parametrize(("answer", "is_adopted"), [("n", False), ("y", True)])
def test_on_a_terminal_it_shows_what_it_found_and_asks(
    stores: Stores, restore: Restore, backup: Path, answer: str, is_adopted: bool
) -> None:
    """Only a yes adopts, and before the question stands what would be done."""
    publish(stores.engine, 3)
    here = restore(back_up(stores, backup))
    relay(stores, until_empty=True)
    assert here.settings.postgres_url
    assert here.settings.clickhouse_url
    urls = {
        "OUTBOX_POSTGRES_URL": here.settings.postgres_url.get_secret_value(),
        "OUTBOX_CLICKHOUSE_URL": here.settings.clickhouse_url.get_secret_value(),
    }
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "outbox_pipeline.cli.main", "adopt"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **urls},
        stdin=theirs,
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(ours)
    os.close(theirs)

    assert "3 events in 1 batch" in done.stderr
    assert "Is the old instance stopped for good?" in done.stderr
    assert "dry run" not in done.stderr
    assert is_adopted or done.stdout == ""
    assert done.returncode == (0 if is_adopted else 1)
    assert adopt(here, dry_run=True).was_own is is_adopted


def test_without_clickhouse_nothing_is_adopted(
    stores: Stores, restore: Restore, backup: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    """What the old instance delivered is not guessed: with ClickHouse away it is one sentence, and nothing changes."""
    publish(stores.engine, 3)
    here = restore(back_up(stores, backup))
    before = everything(here)

    code, said, complaint = command(here, "--yes", clickhouse_url=SecretStr("http://127.0.0.1:1"))

    assert (code, said) == (1, "")
    assert "cannot be reached" in complaint
    assert complaint.count("\n") == 1
    assert everything(here) == before
