"""Fixtures come as plugins by topic; see `tests/fixtures/`."""

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
