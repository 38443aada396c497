"""A process that uses the engines starts again the ones that were killed, without getting in anybody's way."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from outbox_pipeline.embedded import clickhouse, postgres
from outbox_pipeline.embedded.clickhouse import running_clickhouse
from outbox_pipeline.embedded.engines import embedded_engines, running_engines
from outbox_pipeline.embedded.homes import Home, locked
from outbox_pipeline.embedded.keeper import EngineKeeper
from outbox_pipeline.embedded.postgres import running_postgres
from outbox_pipeline.processes import wait_until
from tests.fixtures.homes import processes_of

pytestmark = pytest.mark.embedded_only


def kill(home: Home) -> None:
    """Kill both engines and wait until they are gone."""
    for handle in (running_clickhouse(home), running_postgres(home)):
        assert handle is not None
        os.kill(handle.pid, signal.SIGKILL)
    assert wait_until(lambda: running_clickhouse(home) is None and running_postgres(home) is None, seconds=20)


def test_killed_engines_are_started_again(own_home: Path) -> None:
    """Once, with a sentence each and under the same URLs; where another process has the lock it is left to that one."""
    home, keeper = Home(own_home), EngineKeeper(own_home)
    with embedded_engines(own_home) as urls:
        assert keeper.revive() == []
        kill(home)
        with locked(home):
            assert keeper.revive() == []
        told = keeper.revive()

        assert told == ["PostgreSQL had ended and was started again.", "ClickHouse had ended and was started again."]
        assert running_engines(own_home) == urls
        assert keeper.revive() == []
    assert processes_of(own_home) == []


def test_an_engine_that_cannot_start_says_why_once(own_home: Path) -> None:
    """It is not tried again at once, goes on being tried, and comes back when what was in its way has gone."""
    home = Home(own_home)
    keeper = EngineKeeper(own_home, postgres=False)
    with embedded_engines(own_home, postgres=False):
        os.kill(running_clickhouse(home).pid, signal.SIGKILL)  # type: ignore[union-attr]
        assert wait_until(lambda: running_clickhouse(home) is None, seconds=20)
        data = home.clickhouse_data.rename(own_home / "away")
        home.clickhouse_data.write_text("in the way")

        (why,) = keeper.revive()
        attempts = home.clickhouse_log.stat().st_size
        assert why.startswith("ClickHouse had ended and cannot be started again: The ClickHouse server does not start")
        assert keeper.revive() == []
        assert home.clickhouse_log.stat().st_size == attempts
        told: list[str] = []
        assert wait_until(
            lambda: bool(told.extend(keeper.revive()) or home.clickhouse_log.stat().st_size > attempts), seconds=60
        )
        assert told == []

        home.clickhouse_data.unlink()
        data.rename(home.clickhouse_data)
        assert wait_until(lambda: bool(told.extend(keeper.revive()) or told), seconds=60)
        assert told == ["ClickHouse had ended and was started again."]


def test_an_engine_that_is_killed_again_at_once_is_started_later(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends between its first answer and its first statement: that is told, and `outbox up` goes on."""
    home, keeper = Home(own_home), EngineKeeper(own_home, clickhouse=False)
    answers = postgres._answers

    def answer_once(handle: postgres.PostgresHandle) -> bool:
        assert answers(handle)
        os.kill(handle.pid, signal.SIGKILL)
        return wait_until(lambda: not answers(handle), seconds=20)

    with embedded_engines(own_home, clickhouse=False):
        os.kill(running_postgres(home).pid, signal.SIGKILL)  # type: ignore[union-attr]
        assert wait_until(lambda: running_postgres(home) is None, seconds=20)
        with monkeypatch.context() as patched:
            patched.setattr(postgres, "_answers", answer_once)
            (why,) = keeper.revive()
        told: list[str] = []

        assert why.startswith("PostgreSQL had ended and cannot be started again: PostgreSQL with pid ")
        assert wait_until(lambda: bool(told.extend(keeper.revive()) or told), seconds=60)
        assert told == ["PostgreSQL had ended and was started again."]


@pytest.mark.parametrize("engine", [clickhouse, postgres])
def test_an_interrupted_start_leaves_nothing_running(
    own_home: Path, engine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends an engine that has not said yet that it is there."""
    home = Home(own_home)
    with embedded_engines(own_home):
        # The data is made before: here is only about the servers.
        pass

    def interrupted(condition: Callable[[], bool], *, seconds: float, **options: float) -> bool:
        if seconds != engine._START_SECONDS:
            return wait_until(condition, seconds=seconds, **options)
        monkeypatch.setattr(engine, "wait_until", wait_until)
        assert wait_until(lambda: bool(processes_of(own_home)), seconds=60)
        raise KeyboardInterrupt

    start = {clickhouse: clickhouse.start_clickhouse, postgres: postgres.start_postgres}[engine]
    monkeypatch.setattr(engine, "wait_until", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(home)

    assert processes_of(own_home) == []
