"""Fixtures come as plugins by topic; see `tests/fixtures/`. Here: where they keep data."""

import os
import signal

import pytest

from outbox_pipeline.embedded.postgres import remove_orphans
from tests.fixtures.folders import fast_folder

#: What the process that hands the tests to several workers needs too; all else would only be imported there.
pytest_plugins = [
    "pytester",
    "tests.fixtures.selection",
    "tests.fixtures.servers",
    "tests.fixtures.moves",
    "tests.fixtures.statements",
]

_FOR_TESTS = [
    "tests.fixtures.stores",
    "tests.fixtures.commands",
    "tests.fixtures.roles",
    "tests.fixtures.events",
    "tests.fixtures.plans",
    "tests.fixtures.days",
    "tests.fixtures.sessions",
    "tests.fixtures.broken_outbox",
    "tests.fixtures.django_project",
    "tests.fixtures.children",
    "tests.fixtures.migrating",
    "tests.fixtures.proxy",
    "tests.fixtures.pgbouncer",
    "tests.fixtures.quiet",
    "tests.fixtures.dagster",
    "tests.fixtures.webhook",
    "tests.fixtures.contacts",
    "tests.fixtures.homes",
    "tests.fixtures.accounts",
    "tests.fixtures.instances",
    "tests.fixtures.owners",
    "tests.fixtures.clock",
    "tests.fixtures.next_release",
    "tests.fixtures.releases",
    "tests.fixtures.nodes",
    "tests.fixtures.rehearsal",
    "tests.fixtures.image",
    "tests.fixtures.charts",
]


def pytest_configure(config: pytest.Config) -> None:
    """Keep the engines' data in memory where there is room, and load the fixtures where tests run."""
    memory = fast_folder()
    if memory is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))
        os.environ["OUTBOX_SERVER_FOLDER"] = str(memory / "outbox-tests")
    if getattr(config.option, "dist", "no") == "no":
        for name in _FOR_TESTS:
            config.pluginmanager.import_plugin(name)
        _let_examples_take_their_time()
        # A shell starts what is to run in the background without it, and some tests are interrupted as by Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _let_examples_take_their_time() -> None:
    """Judge no example by its milliseconds, which on a busy machine say nothing of the code; CI's profile does not."""
    from hypothesis import HealthCheck, settings

    settings.register_profile("busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")


def pytest_unconfigure() -> None:
    """Remove what root's engines left of the homes that pytest has removed."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        remove_orphans()
