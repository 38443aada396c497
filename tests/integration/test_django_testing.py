"""A Django project's own tests, run by its own runner on a test database that it makes and drops."""

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.fixtures.django_project import database
from tests.fixtures.servers import Servers

ROOT = Path(__file__).parents[2]

_SETTINGS = """
SECRET_KEY = "for tests"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "outbox_pipeline.django"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {{"default": {database!r}}}
"""

_TESTS = """
from django.db import transaction
from django.test import TestCase, TransactionTestCase

from outbox_pipeline import Event, NoTransactionError
from outbox_pipeline.django import publish_event
from outbox_pipeline.django.models import OutboxEvent, QuarantinedEvent
from outbox_pipeline.testing import OutboxTestMixin


class UserCreated(Event):
    email: str


def create_user(email):
    with transaction.atomic():
        publish_event(UserCreated(email=email))


class Committed(OutboxTestMixin, TransactionTestCase):
    def check(self):
        assert OutboxEvent.objects.count() == 0
        assert self.outbox.published() == []
        for email in ("a", "b"):
            create_user(email)
        assert OutboxEvent.objects.count() == 2
        assert self.outbox.published(UserCreated) == [UserCreated(email="a"), UserCreated(email="b")]

    test_one = test_two = check


class RolledBack(OutboxTestMixin, TestCase):
    def setUp(self):
        create_user("prepared")

    def check(self):
        create_user("a")
        assert self.outbox.published(UserCreated) == [UserCreated(email="prepared"), UserCreated(email="a")]
        self.outbox.clear()
        with self.assertRaisesRegex(NoTransactionError, "transaction.atomic()"):
            publish_event(UserCreated(email="b"))
        self.outbox.isolate()
        publish_event(UserCreated(email="c"))
        assert self.outbox.published() != [] and OutboxEvent.objects.count() == 2

    test_one = test_two = check

    def test_without_isolation_again(self):
        assert OutboxEvent.objects.count() == 1
        create_user("a")
        assert OutboxEvent.objects.count() == 2


"""

_MANAGE = """
import sys

sys.modules["pytest"] = None
from django.core.management import execute_from_command_line

execute_from_command_line(["manage.py", *sys.argv[1:]])
"""


@pytest.mark.parametrize("test", [{}, {"MIGRATE": False}], ids=["migrations", "no migrations"])
def test_a_projects_own_runner_passes(tmp_path: Path, servers: Servers, test: dict[str, object]) -> None:
    """Each test finds an empty outbox, whatever was committed before, and knows what it publishes, without pytest."""
    settings = database(servers.postgres_url) | {"TEST": {"NAME": f"t_{uuid4().hex[:12]}", **test}}
    (tmp_path / "project_settings.py").write_text(_SETTINGS.format(database=settings), encoding="utf-8")
    (tmp_path / "tests.py").write_text(_TESTS, encoding="utf-8")
    (tmp_path / "manage.py").write_text(_MANAGE, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "project_settings"}

    done = subprocess.run(
        [sys.executable, "manage.py", "test"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr
    assert "Ran 5 tests" in done.stderr
