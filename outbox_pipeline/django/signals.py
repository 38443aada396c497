"""What follows Django's `migrate` and `flush`, which both send `post_migrate`.

After `migrate`: the schema, in a project that runs no migrations of this app, as tests do with `MIGRATION_MODULES`, a
database's `TEST = {"MIGRATE": False}` or pytest-django's `--no-migrations`. After `flush`, which TransactionTestCase
calls behind each test and which knows nothing of unmanaged tables: an outbox without events.

Invariant: an outbox is emptied in a process that Django has set up for tests, on a database under the name of a test
database, and nowhere else: `setup_test_environment` alone, as in a shell, leaves the connections where they were.
"""

import re
import sys
from typing import Any

from django.apps import AppConfig
from django.db import connections, router
from django.db.backends.base.creation import TEST_DATABASE_PREFIX
from django.db.migrations.loader import MigrationLoader
from django.db.models.signals import post_migrate

from outbox_pipeline.django.numbered import make_schema
from outbox_pipeline.postgres.queries import query_text


def follow_commands(app: AppConfig) -> None:
    """Do what is said above whenever a command is done with *app*."""
    post_migrate.connect(_follow, sender=app, dispatch_uid="outbox_pipeline.django.signals")


def _follow(sender: AppConfig, using: str, **said: Any) -> None:
    connection = connections[using]
    if connection.vendor != "postgresql" or not router.allow_migrate(using, sender.label):
        return
    # Only `migrate` has a plan to tell of.
    if "plan" in said:
        if not _has_own_migrations(sender):
            make_schema(connection)
    elif _is_set_up_for_tests() and _is_test_database(connection):
        with connection.cursor() as cursor:
            cursor.execute(query_text("empty_outbox"))


def _has_own_migrations(app: AppConfig) -> bool:
    return bool(MigrationLoader.migrations_module(app.label)[0] == f"{app.name}.migrations")


def _is_set_up_for_tests() -> bool:
    # What `setup_test_environment` leaves, which every runner calls; a project in production has loaded none of it.
    state = getattr(sys.modules.get("django.test.utils"), "_TestState", None)
    return hasattr(state, "saved_data")


def _is_test_database(connection: Any) -> bool:
    # As `create_test_db` names it, and its copies for several processes.
    name, own = connection.settings_dict["NAME"], connection.settings_dict["TEST"]["NAME"]
    if own is None:
        return str(name).startswith(TEST_DATABASE_PREFIX)
    return re.fullmatch(rf"{re.escape(own)}(_\d+)?", name) is not None
