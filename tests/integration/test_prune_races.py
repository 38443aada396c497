"""A prune beside others: what is sent again meanwhile stays; killed or doubled, it leaves batches whole or pruned."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from outbox_pipeline.errors import BatchDataError
from outbox_pipeline.operations.replay import Outcome, batches_of_days, replay
from outbox_pipeline.operations.retention import Pruned, Reason, prune
from outbox_pipeline.relay.attempts import start_unrequested
from outbox_pipeline.relay.loop import deliver as deliver_batch
from outbox_pipeline.settings import today
from outbox_pipeline.stores import Stores
from tests.fixtures.events import committed_ids, delivered_ids
from tests.fixtures.interleave import before_words
from tests.fixtures.moves import move_by_hand
from tests.fixtures.retained import age, batch_facts, batch_id, deliver

ROOT = Path(__file__).parents[2]


def sent_meanwhile(stores: Stores) -> Callable[[], None]:
    """Return what lets somebody take the batch over under another attempt."""
    return lambda: move_by_hand(
        stores.engine,
        "UPDATE outbox.batch SET status = 'delivering', holder = 'x', lease_until = now(), attempt = attempt + 1",
    )


def test_a_batch_sent_again_after_the_proof_is_left_alone(stores: Stores) -> None:
    """Between the look at ClickHouse and the delete somebody takes the batch over: it is skipped, not pruned."""
    deliver(stores)

    with before_words(stores.engine, "SKIP LOCKED", sent_meanwhile(stores)):
        done = prune(stores)

    assert [item.reason for item in done.skipped] == [Reason.IN_USE]
    assert batch_facts(stores) == [("delivering", False)]
    assert len(committed_ids(stores.engine)) == 10


def test_a_batch_reloaded_after_the_proof_is_left_alone(stores: Stores) -> None:
    """A whole redelivery between the look and the delete counts as well: the batch is younger and was sent anew."""
    deliver(stores)

    def reload() -> None:
        delivery = start_unrequested(stores, batch_id(stores))
        deliver_batch(delivery, reload=True)
        age(stores)

    with before_words(stores.engine, "SKIP LOCKED", reload):
        done = prune(stores)

    assert [item.reason for item in done.skipped] == [Reason.IN_USE]
    assert prune(stores).events == 10


def test_a_replay_that_comes_first_keeps_the_events(stores: Stores) -> None:
    """While a replay's transaction holds the batch's row, a prune passes it by and does not wait."""
    deliver(stores)
    with stores.engine.begin() as replaying:
        replaying.execute(text("SELECT FROM outbox.batch FOR UPDATE"))

        done = prune(stores)

    assert [item.reason for item in done.skipped] == [Reason.IN_USE]
    assert len(committed_ids(stores.engine)) == 10


def test_a_pruned_batch_is_never_taken_up_again(stores: Stores) -> None:
    """A replay that saw the batch before it was pruned is refused; the ledger keeps it processed."""
    deliver(stores)
    prune(stores)

    with pytest.raises(BatchDataError, match="can be proved but not sent again"):
        start_unrequested(stores, batch_id(stores))
    assert batch_facts(stores) == [("processed", True)]


def test_a_replay_proves_what_was_pruned_meanwhile(stores: Stores) -> None:
    """A long replay may come to a batch that a prune was at first: it is whole, and that is no failure."""
    deliver(stores)
    listed = batches_of_days(stores.engine, today(), today())
    list(replay(stores, listed, reload=True))
    age(stores)
    prune(stores)

    (done,) = replay(stores, listed, reload=True)

    assert (done.outcome, done.row_count) == (Outcome.PROVEN, 10)
    assert "pruned" in done.detail


@pytest.mark.parametrize(("words", "nth"), [("DELETE FROM outbox.event", 2), ("SET pruned_at", 1), ("COMMIT", 6)])
def test_a_killed_prune_leaves_each_batch_whole_or_pruned(stores: Stores, words: str, nth: int) -> None:
    """Kill -9 between any two statements: a batch has all its events or is pruned, and the next prune ends it."""
    for _ in range(3):
        deliver(stores)

    kill_prune_before(stores, words, nth)

    with stores.engine.begin() as connection:
        left = connection.execute(text(_EVENTS_OF_BATCHES)).all()
    assert {(row.is_pruned, row.event_count) for row in left} <= {(True, 0), (False, 10)}
    assert any(not row.is_pruned for row in left)
    assert prune(stores).refused == ()
    assert committed_ids(stores.engine) == set()
    assert len(delivered_ids(stores.client)) == 30


_EVENTS_OF_BATCHES = """
SELECT pruned_at IS NOT NULL AS is_pruned,
       (SELECT count(*) FROM outbox.event WHERE batch.positions @> position) AS event_count
FROM outbox.batch
"""


def kill_prune_before(stores: Stores, words: str, nth: int) -> None:
    """Prune in another process that dies just before the nth such statement."""
    settings = stores.settings
    assert settings.postgres_url is not None
    assert settings.clickhouse_url is not None
    orders = {
        "postgres_url": settings.postgres_url.get_secret_value(),
        "clickhouse_url": settings.clickhouse_url.get_secret_value(),
        "words": words,
        "nth": nth,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.fixtures.pruner"], input=json.dumps(orders), text=True, cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_two_prunes_at_once_prune_each_batch_once(stores: Stores) -> None:
    """Two processes share the work: nobody waits, nothing is counted twice."""
    for _ in range(5):
        deliver(stores)
    done: list[Pruned] = []
    threads = [threading.Thread(target=lambda: done.append(prune(stores))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(one.events for one in done) == 50
    assert committed_ids(stores.engine) == set()
