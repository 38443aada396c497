"""Dagster's processes killed in the middle of their work are recovered by the sensor, with nobody touching anything."""

import time

import pytest
from sqlalchemy import text

from outbox_pipeline.relay.points import Point
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.kill_orders import RUN_STARTED
from tests.fixtures.stack import Running

#: Where a run is killed: before its first op, with the lease, with the rows sent, in the transaction of the mark.
PLACES = (RUN_STARTED, Point.LEASED, Point.SENT, Point.MARKING)

AT_WORK = """
{ runsOrError(filter: {pipelineName: "deliver_batch", statuses: [STARTED]}) { ... on Runs { results { runId } } } }
"""


def silent_count(running: Running) -> int:
    """Return how many attempts of all batches were not the last one."""
    with running.stores.engine.begin() as connection:
        return int(connection.scalar(text("SELECT sum(attempt - 1) FROM outbox.batch WHERE attempt > 0")) or 0)


def test_killed_runs_are_recovered(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """Four runs die at four places; others deliver their batches once the leases are over, and they leave the queue."""
    before = silent_count(running)
    running.kill_at(*PLACES)
    publish(running.stores.engine, 200 * len(PLACES))
    running.wait_killed()
    killed = time.monotonic()

    running.wait_for_delivery()

    with capsys.disabled():
        print(f" [recovered in {time.monotonic() - killed:.0f} s]", end="")
    assert silent_count(running) - before >= len(PLACES)
    running.wait(lambda: not running.graphql(AT_WORK)["runsOrError"]["results"], "dead runs to give their places back")
    assert_each_exactly_once(running.stores.engine, running.stores.client)


def test_a_run_that_died_with_its_code_server_gives_its_place_back(running: Running) -> None:
    """Nothing of the server is left to tell Dagster of it; the ledger's next attempt delivers, and tells."""
    running.kill_at(Point.LEASED, whole_group=True)
    publish(running.stores.engine, 20)
    running.wait(lambda: running.stack.revive() == ["code"], "the code server to die and be started again")

    running.wait_for_delivery()

    running.wait(lambda: not running.graphql(AT_WORK)["runsOrError"]["results"], "the dead run to give its place back")
    assert_each_exactly_once(running.stores.engine, running.stores.client)


def test_ticks_killed_in_the_middle_are_recovered(running: Running) -> None:
    """A tick that dies between cutting and requesting, or before Dagster hears of its requests, loses nothing."""
    running.kill_at(Point.CUT, Point.REQUESTED)
    publish(running.stores.engine, 50)

    for _ in range(2):
        running.wait(lambda: bool(running.stack.revive()), "the code server to die and be started again")
    running.wait_killed()
    running.wait_for_delivery()

    assert_each_exactly_once(running.stores.engine, running.stores.client)
