"""Two releases work on one outbox while the newer one migrates it under load: nothing is lost, doubled or parked."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.processes import wait_until
from outbox_pipeline.stores import Stores
from tests.fixtures import crew
from tests.fixtures.children import recover
from tests.fixtures.events import delivered_ids, quarantined_ids
from tests.fixtures.next_release import NEXT, NEXT_LOG, NextRelease

_ROOT = Path(__file__).parents[2]
_PATIENCE_SECONDS = 60


class Crew:
    """Processes of one release; see `tests.fixtures.crew` for what they do."""

    def __init__(self, stores: Stores, environment: dict[str, str] | None, **duties: int) -> None:
        """Load the release; nothing is done yet."""
        command = [sys.executable, "-P", crew.__file__]
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        values = stores.settings.model_dump(mode="json", exclude_unset=True)
        urls = {name: getattr(stores.settings, name).get_secret_value() for name in ("postgres_url", "clickhouse_url")}
        settings = {name: value for name, value in values.items() if name not in urls}
        self._tell(
            json.dumps(
                {**urls, "settings": {**settings, "retention_days": 1, "log_level": "WARNING"}, "duties": duties}
            )
        )

    def ask(self, line: str) -> Any:
        """Tell it to `start` or `migrate`, or ask for its `rounds`."""
        self._tell(line)
        return self._answer()

    def is_past(self, rounds: list[int]) -> bool:
        """Whether every process has done one round whole since it had done *rounds*."""
        return all(now > before + 1 for now, before in zip(self.ask("rounds"), rounds, strict=True))

    def end(self) -> tuple[list[UUID], list[str]]:
        """Let every process finish its round; returns what was published, and what failed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        answers = self._answer()
        self._process.wait(_PATIENCE_SECONDS)
        published = [UUID(event_id) for answer in answers for event_id in answer["published"]]
        return published, [failure for answer in answers for failure in answer["failures"]]

    def close(self) -> None:
        """Leave none of its processes behind."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def is_deadlock(failure: str) -> bool:
    """Whether a worker, never a producer, waited for the migration and the migration for it: then it tries again."""
    return "deadlock detected" in failure and not failure.startswith("publish")


@pytest.fixture
def hire() -> Iterator[Callable[..., Crew]]:
    """Load a crew, whose processes end with the test."""
    with ExitStack() as crews:

        def load(*arguments: Any, **duties: int) -> Crew:
            loaded = Crew(*arguments, **duties)
            crews.callback(loaded.close)
            return loaded

        yield load


def test_old_and_new_workers_share_an_outbox_while_it_is_migrated(
    stores: Stores, hire: Callable[..., Crew], next_release: NextRelease
) -> None:
    """Workers of this release go on through the migration, and those of the next one join them."""
    old = hire(stores, None, publish=1, deliver=2, tend=1)
    new = hire(stores, next_release.environment(), publish=1, deliver=1)
    old.ask("start")
    assert wait_until(lambda: old.is_past([-1] * 4), seconds=_PATIENCE_SECONDS)

    assert new.ask("migrate") == [NEXT, NEXT_LOG]
    new.ask("start")
    rounds = old.ask("rounds")
    assert wait_until(lambda: old.is_past(rounds) and new.is_past([-1] * 2), seconds=_PATIENCE_SECONDS)

    published_by_old, failed_in_old = old.end()
    published_by_new, failed_in_new = new.end()
    recover(stores)
    found = delivered_ids(stores.client) + quarantined_ids(stores.engine)
    with stores.engine.begin() as connection:
        statuses = set(connection.scalars(text("SELECT status FROM outbox.batch")))
        pruned = connection.scalar(text("SELECT count(*) FROM outbox.batch WHERE pruned_at IS NOT NULL"))
        cut_after = connection.scalar(text("SELECT count(added_number) FROM outbox.batch"))
    compared = reconcile(stores)

    assert [failure for failure in failed_in_old + failed_in_new if not is_deadlock(failure)] == []
    assert published_by_old
    assert published_by_new
    assert sorted(found) == sorted(published_by_old + published_by_new)
    assert statuses == {"processed"}
    assert pruned > 0
    assert cut_after > 0
    assert (compared.differences, compared.untracked, compared.late) == ((), (), ())
