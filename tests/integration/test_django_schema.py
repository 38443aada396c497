"""Django's migrations and `outbox init` run the same files, whichever comes first."""

from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from outbox_pipeline.django import numbered
from outbox_pipeline.errors import ConfigurationError, TransientError
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.postgres.migrations.files import LOCK_KEY, file_names
from outbox_pipeline.postgres.schema import check_version, latest_version, migrate
from outbox_pipeline.settings import Settings
from tests.fixtures.django_project import on_database
from tests.fixtures.roles import LoginUrl
from tests.fixtures.servers import Servers
from tests.fixtures.stores import fresh_database, url_of


@pytest.fixture
def empty(servers: Servers, django_project: None) -> Iterator[str]:
    """The URL of an empty database that Django is on."""
    with fresh_database(servers) as name, on_database(url_of(servers, name)):
        yield url_of(servers, name)


def run(*command: str, **options: Any) -> str:
    """Run a command of manage.py and return what it says."""
    from django.core.management import call_command

    said = StringIO()
    call_command(*command, **options, stdout=said, stderr=said)
    return said.getvalue()


def init(url: str) -> None:
    """Do what `outbox init` does on the PostgreSQL side."""
    engine = create_outbox_engine(Settings(postgres_url=SecretStr(url)), pooled=False)
    migrate(engine)
    with engine.connect() as connection:
        check_version(connection)


def schema(url: str) -> Any:
    """Return the columns of every table and view, the functions, and the version with its table."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = inspect(connection)
        names = [*found.get_table_names("outbox"), *found.get_view_names("outbox")]
        columns = {name: [(c["name"], str(c["type"])) for c in found.get_columns(name, "outbox")] for name in names}
        functions = connection.scalars(
            text("SELECT proname FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace ORDER BY 1")
        ).all()
        version = connection.execute(text("SELECT * FROM outbox.schema_version")).all()
        key = found.get_pk_constraint("schema_version", "outbox")
    engine.dispose()
    return columns, functions, version, key


def test_every_numbered_file_has_its_migration() -> None:
    """A new `.sql` file needs a module of its name in django/migrations: copy the last one as it is."""
    from importlib.resources import files

    modules = {file.name for file in files("outbox_pipeline.django.migrations").iterdir()} - {"__pycache__"}

    assert modules == {"__init__.py"} | {name.replace(".sql", ".py") for name in file_names()}


def test_both_make_the_same_schema(empty: str, servers: Servers) -> None:
    """After `migrate` the schema is the one `outbox init` makes, its version included; `init` finds nothing to do."""
    run("migrate", "outbox_pipeline", verbosity=0)
    by_django = schema(empty)
    init(empty)

    with fresh_database(servers) as name:
        init(url_of(servers, name))
        by_init = schema(url_of(servers, name))

    assert by_django == schema(empty) == by_init
    assert by_django[2] == [(latest_version(),)]


def test_a_database_that_init_made_migrates_cleanly(empty: str) -> None:
    """Django runs nothing twice, and events published before stay."""
    init(empty)
    engine = create_engine(empty)
    with engine.begin() as connection:
        connection.execute(text("SELECT outbox.publish('t', '{}')"))
    before = schema(empty)

    run("migrate", verbosity=0)
    run("migrate", verbosity=0)

    assert schema(empty) == before
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM outbox.event")) == 1
    engine.dispose()


@pytest.mark.parametrize("module", [None, "tests.fixtures.no_migrations"])
def test_a_project_without_these_migrations_gets_the_schema(
    empty: str, monkeypatch: pytest.MonkeyPatch, module: str | None
) -> None:
    """Where MIGRATION_MODULES turns them off, or leads elsewhere, `migrate` makes the same schema, once."""
    from django.conf import settings

    monkeypatch.setattr(settings, "MIGRATION_MODULES", {"outbox_pipeline": module})
    for _ in range(2):
        run("migrate", verbosity=0, run_syncdb=True)
    made = schema(empty)
    init(empty)

    assert schema(empty) == made


def test_a_schema_of_another_role_is_left_to_it(
    postgres_url: str, login_url: LoginUrl, django_project: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`migrate` of a project that leaves the outbox to `outbox init` passes, as a role that may only publish."""
    from django.conf import settings

    made = schema(postgres_url)
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("GRANT CREATE ON SCHEMA public TO PUBLIC"))
    engine.dispose()
    monkeypatch.setattr(settings, "MIGRATION_MODULES", {"outbox_pipeline": None})
    with on_database(login_url("outbox_producer")):
        run("migrate", verbosity=0)

    assert schema(postgres_url) == made


@pytest.mark.parametrize(("own", "is_emptied"), [(None, False), ("{name}", True), ("{name}_1", False)])
def test_flush_empties_the_outbox_of_a_test_database_alone(
    empty: str, monkeypatch: pytest.MonkeyPatch, own: str | None, is_emptied: bool
) -> None:
    """A shell in which `setup_test_environment` was called is still on the database of before."""
    from django.db import connection
    from django.test.utils import setup_test_environment, teardown_test_environment

    run("migrate", verbosity=0)
    engine = create_engine(empty)
    with engine.begin() as session:
        session.execute(text("SELECT outbox.publish('t', '{}')"))
    named = own and own.format(name=connection.settings_dict["NAME"])
    monkeypatch.setitem(connection.settings_dict["TEST"], "NAME", named)
    setup_test_environment()
    try:
        run("flush", interactive=False)
    finally:
        teardown_test_environment()

    with engine.begin() as session:
        assert session.scalar(text("SELECT count(*) FROM outbox.event")) == (0 if is_emptied else 1)
    engine.dispose()


def test_flush_takes_no_event_from_a_project_at_work(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a process that Django has set up for tests finds the outbox empty behind `flush`."""
    from django.db import connection as django_connection
    from django.test.utils import setup_test_environment, teardown_test_environment

    run("migrate", verbosity=0)
    engine = create_engine(empty)
    with engine.begin() as connection:
        connection.execute(text("SELECT outbox.publish('t', '{}')"))
    run("flush", interactive=False)
    with engine.begin() as connection:
        left = connection.scalar(text("SELECT count(*) FROM outbox.event"))
    monkeypatch.setitem(django_connection.settings_dict["TEST"], "NAME", django_connection.settings_dict["NAME"])
    setup_test_environment()
    run("flush", interactive=False)
    teardown_test_environment()
    with engine.begin() as connection:
        assert (left, connection.scalar(text("SELECT count(*) FROM outbox.event"))) == (1, 0)
        connection.execute(text("SELECT outbox.publish('t', '{}')"))
        with pytest.raises(DBAPIError, match="insert-only: TRUNCATE is refused"):
            connection.execute(text("TRUNCATE outbox.event"))
    engine.dispose()


def test_half_way_either_goes_on(empty: str) -> None:
    """Django migrates to the first file, `outbox init` to the last, and Django then notes the others as applied."""
    run("migrate", "outbox_pipeline", "0001", verbosity=0)
    assert schema(empty)[2] == [("0001",)]
    init(empty)
    before = schema(empty)
    run("migrate", "outbox_pipeline", verbosity=0)

    assert schema(empty) == before
    assert "[ ]" not in run("showmigrations", "outbox_pipeline")


def test_a_schema_newer_than_the_code_is_refused(empty: str) -> None:
    """An older deploy does not migrate what a newer one made."""
    init(empty)
    engine = create_engine(empty)
    with engine.begin() as connection:
        connection.execute(text("UPDATE outbox.schema_version SET version_num = '9999'"))
    engine.dispose()

    with pytest.raises(ConfigurationError, match="9999, newer"):
        run("migrate", "outbox_pipeline", verbosity=0)


def test_nobody_takes_the_events_away(empty: str) -> None:
    """`migrate outbox_pipeline zero` is refused."""
    from django.db.migrations.exceptions import IrreversibleError

    run("migrate", "outbox_pipeline", verbosity=0)
    with pytest.raises(IrreversibleError):
        run("migrate", "outbox_pipeline", "zero", verbosity=0)


def test_no_migration_is_missing_and_checks_pass(empty: str) -> None:
    """A project that uses the app sees no changes to migrate and no warnings; `sqlmigrate` shows the file."""
    run("makemigrations", "--check", "--dry-run")
    said = run("check", "--fail-level", "WARNING", "--tag", "models", "--tag", "admin")

    assert "no issues" in said
    assert "CREATE TABLE outbox.event (" in run("sqlmigrate", "outbox_pipeline", "0001")


def test_other_databases_are_left_alone(empty: str) -> None:
    """On a database that is not PostgreSQL the migrations do nothing, so a project may have one."""
    run("migrate", "outbox_pipeline", database="elsewhere", verbosity=0)

    assert "[X] 0001_outbox" in run("showmigrations", "outbox_pipeline", database="elsewhere")


def test_a_held_lock_is_named_and_not_waited_for(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`migrate` says which session holds the lock of migrations, instead of waiting for it without an end."""
    monkeypatch.setattr(numbered, "LOCK_SECONDS", 0.1)
    engine = create_engine(empty)
    with engine.connect() as other:
        other.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
        pid = other.scalar(text("SELECT pg_backend_pid()"))

        with pytest.raises(TransientError, match=f"held by pid {pid} "):
            run("migrate", "outbox_pipeline", verbosity=0)

    engine.dispose()
    run("migrate", "outbox_pipeline", verbosity=0)
    assert schema(empty)[2] == [(latest_version(),)]


def test_a_refusal_is_one_sentence(empty: str) -> None:
    """What PostgreSQL refuses while it migrates is told with its state and words, and not by a driver's error."""
    engine = create_engine(empty)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA outbox"))
        connection.execute(text("CREATE TABLE outbox.event ()"))

    with pytest.raises(ConfigurationError, match=r"already exists .*SQLSTATE 42P07") as raised:
        run("migrate", "outbox_pipeline", verbosity=0)
    engine.dispose()

    assert str(raised.value).startswith("The database 'default' refuses this: ")
    assert raised.value.__suppress_context__
