"""A Dagster run whose process is killed is recovered by the sensor, with nobody touching anything."""

import time

import pytest
from sqlalchemy import text

from outbox_pipeline.relay.points import Point
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.mortal import RUN_STARTED
from tests.fixtures.stack import Running


def latest_attempt(running: Running) -> int:
    """Return how many attempts the latest batch took."""
    with running.stores.engine.begin() as connection:
        attempt = connection.scalar(text("SELECT attempt FROM outbox.batch ORDER BY cut_at DESC LIMIT 1"))
    assert isinstance(attempt, int)
    return attempt


@pytest.mark.parametrize("place", [RUN_STARTED, Point.LEASED, Point.SENT, Point.MARKING])
def test_a_killed_run_is_recovered(running: Running, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether it died before its first op, with the lease, with the rows sent or in the mark: another run delivers."""
    publish(running.stores.engine, 50)
    running.kill_once(place)
    running.wait_killed()
    killed = time.monotonic()

    running.wait_for_delivery()

    with capsys.disabled():
        print(f" recovered in {time.monotonic() - killed:.0f} s", end="")
    assert latest_attempt(running) == 2
    assert_each_exactly_once(running.stores.engine, running.stores.client)


@pytest.mark.parametrize("point", [Point.CUT, Point.REQUESTED])
def test_a_code_server_killed_in_a_tick_is_recovered(running: Running, point: Point) -> None:
    """A tick that dies between its two transactions, or before Dagster hears of its requests, loses nothing."""
    publish(running.stores.engine, 50)
    running.kill_once(point)
    running.wait_killed()

    running.wait(lambda: bool(running.stack.revive()), "the code server to end")
    running.wait_for_delivery()

    assert_each_exactly_once(running.stores.engine, running.stores.client)
