"""Fixtures come as plugins by topic; see `tests/fixtures/`. Here: where they keep data, who shares a worker."""

import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from outbox_pipeline.embedded.postgres import remove_orphans

pytest_plugins = [
    "pytester",
    "tests.fixtures.servers",
    "tests.fixtures.stores",
    "tests.fixtures.roles",
    "tests.fixtures.events",
    "tests.fixtures.sessions",
    "tests.fixtures.django_project",
    "tests.fixtures.children",
    "tests.fixtures.proxy",
    "tests.fixtures.dagster",
    "tests.fixtures.webhook",
    "tests.fixtures.contacts",
    "tests.fixtures.homes",
    "tests.fixtures.accounts",
    "tests.fixtures.lives",
]

#: A file system in memory and the room that all workers' engines need there.
_MEMORY = Path("/dev/shm")
_MEMORY_BYTES = 4_000_000_000

#: What a test file says when it uses a fixture with all of Dagster's processes behind it.
_WHOLE_STACKS = ("running: Running", "own_home: Path")


def pytest_configure() -> None:
    """Keep the engines' data in memory where there is room: on a disk a third of the time is waiting for its fsync."""
    if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _MEMORY_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))
        os.environ["OUTBOX_SERVER_FOLDER"] = str(_MEMORY / "outbox-tests")


def pytest_unconfigure() -> None:
    """Remove what root's engines left of the homes that pytest has removed."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        remove_orphans()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests on one worker, and all that run a whole stack: two at once would starve each other."""
    # xdist's own groups do not reach its scheduler under pytest 9.2, which no longer lets it change a test's id.
    from xdist.scheduler import LoadScopeScheduling

    @cache
    def group_of(file: str) -> str:
        text = (config.rootpath / file).read_text(encoding="utf-8")
        return "stack" if any(words in text for words in _WHOLE_STACKS) else file

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0])

    return Groups(config, log)
