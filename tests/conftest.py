"""Fixtures come as plugins by topic; see `tests/fixtures/`. Here: which tests share a worker of `make test`."""

import pytest

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
    "tests.fixtures.stack",
    "tests.fixtures.homes",
    "tests.fixtures.lives",
]

#: Fixtures with all of Dagster's processes behind them.
_WHOLE_STACKS = {"running", "own_home"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests together, and all that run a whole stack: two at once would starve each other."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        item.add_marker(pytest.mark.xdist_group("stack" if fixtures & _WHOLE_STACKS else item.path.name))
