"""The schema can be made and brought up to date by a role that owns it and has no other right."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from uuid import uuid4

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, make_url

from outbox_pipeline.clickhouse.client import clickhouse_client
from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.postgres.migrations.files import file_names, known_versions, script
from outbox_pipeline.postgres.schema import check_version, latest_version, migrate
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.commands import run_outbox
from tests.fixtures.django_project import on_database
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.proxy import FaultyProxy, through
from tests.fixtures.servers import Servers
from tests.fixtures.stores import administration, fresh_database, identifier, url_of

#: Brings the schema up to date as the role of a URL.
Tool = Callable[[str], None]


def init(url: str) -> None:
    """Do what `outbox init` does on the PostgreSQL side."""
    engine = create_outbox_engine(Settings(postgres_url=SecretStr(url)), pooled=False)
    migrate(engine)
    with engine.connect() as connection:
        check_version(connection)


def django(url: str) -> None:
    """Do what `manage.py migrate outbox_pipeline` does; what Django notes of it goes to a schema of the role's own."""
    from django.core.management import call_command

    with on_database(url):
        call_command("migrate", "outbox_pipeline", verbosity=0, stdout=StringIO())


@pytest.fixture(params=[init, django], ids=lambda tool: tool.__name__)
def tool(request: pytest.FixtureRequest, django_project: None) -> Tool:
    """`outbox init`, then Django."""
    found: Tool = request.param
    return found


@dataclass(frozen=True)
class Place:
    """An empty database in which no role but its owner may create anything, and a role; their names need quotes."""

    url: str
    role: str
    administration: Engine

    def execute(self, *statements: str) -> None:
        """Run statements as the superuser."""
        with self.administration.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)


@pytest.fixture
def place(servers: Servers, django_project: None) -> Iterator[Place]:
    """A database of the test's own."""
    with a_role(servers) as name, fresh_database(servers, prefix='my"Base_') as database:
        engine = create_engine(url_of(servers, database), isolation_level="AUTOCOMMIT")
        url = make_url(url_of(servers, database)).set(username=name, password="secret")
        place = Place(url.render_as_string(hide_password=False), identifier(name), engine)
        place.execute(
            f"REVOKE ALL ON DATABASE {identifier(database)} FROM PUBLIC",
            f"GRANT CONNECT ON DATABASE {identifier(database)} TO {place.role}",
            # The first schema on the role's search path, for what Django notes of its migrations.
            f"CREATE SCHEMA {place.role} AUTHORIZATION {place.role}",
        )
        yield place
        engine.dispose()


@contextmanager
def a_role(servers: Servers) -> Iterator[str]:
    """Make a login role whose name needs quotes."""
    name = f'My"App_{uuid4().hex[:8]}'
    with administration(servers) as engine, engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {identifier(name)} LOGIN PASSWORD 'secret'")
        try:
            yield name
        finally:
            connection.exec_driver_sql(f"DROP ROLE {identifier(name)}")


def run_files(place: Place, versions: list[str]) -> None:
    """Make the schema as an older release left it, as the role itself."""
    with psycopg.connect(place.url.replace("+psycopg", "")) as connection:
        connection.execute(
            "CREATE TABLE outbox.schema_version (version_num varchar(32) CONSTRAINT schema_version_pkc PRIMARY KEY)"
        )
        for name in file_names()[: len(versions)]:
            connection.execute(script(name).encode())
        connection.execute("INSERT INTO outbox.schema_version VALUES (%s)", [versions[-1]])


def test_the_schemas_owner_needs_no_right_on_the_database(place: Place, tool: Tool) -> None:
    """A schema that is there is not created: the first run and every repeated one work."""
    place.execute(f"CREATE SCHEMA outbox AUTHORIZATION {place.role}")

    tool(place.url)
    tool(place.url)
    init(place.url)


def test_an_owner_who_may_not_create_roles_is_told(
    place: Place, clickhouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schema is made without them, and `outbox init` names what is missing and what to run."""
    place.execute("CREATE SCHEMA outbox AUTHORIZATION " + place.role)
    hidden = f"renamed_{uuid4().hex[:8]}"
    monkeypatch.setenv("OUTBOX_POSTGRES_URL", place.url)
    monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", clickhouse_url)
    place.execute(f"ALTER ROLE outbox_pipeline RENAME TO {hidden}")
    try:
        done = run_outbox("init")
    finally:
        place.execute(f"ALTER ROLE {hidden} RENAME TO outbox_pipeline")

    assert done.exit_code == 0
    assert "Missing, because this role may not create roles: outbox_pipeline." in done.stderr
    assert "CREATE ROLE outbox_pipeline; then SELECT outbox.grant_roles()" in done.stderr
    assert "Missing" not in run_outbox("init").stderr


def test_the_schemas_owner_brings_an_older_schema_up_to_date(place: Place, tool: Tool) -> None:
    """An upgrade needs no right on the database either."""
    place.execute(f"CREATE SCHEMA outbox AUTHORIZATION {place.role}")
    run_files(place, known_versions()[:-2])

    tool(place.url)

    init(place.url)


@pytest.mark.usefixtures("unclaimed")
def test_the_schemas_owner_delivers(place: Place, stores: Stores) -> None:
    """What it has made works: events it publishes arrive once each."""
    place.execute(f"CREATE SCHEMA outbox AUTHORIZATION {place.role}")
    init(place.url)
    settings = stores.settings.model_copy(update={"postgres_url": SecretStr(place.url)})
    own = Stores(create_outbox_engine(settings), stores.client, settings)
    event_ids = publish(own.engine, 5)

    relay(own, until_empty=True)

    assert_each_exactly_once(own.engine, own.client, event_ids)
    own.engine.dispose()


def test_a_schema_that_is_up_to_date_needs_no_right_to_change_it(place: Place, tool: Tool) -> None:
    """Whoever may read the version may ask for what is there already, as each deploy does."""
    init(place.administration.url.render_as_string(hide_password=False))
    place.execute(f"GRANT outbox_pipeline TO {place.role}")

    tool(place.url)


def statements(error: ConfigurationError) -> list[str]:
    """Return the statements that a sentence names."""
    return re.findall(r"((?:GRANT|CREATE) [^;]*);", str(error))


@pytest.mark.parametrize("nth", [0, 1])
def test_a_role_that_may_not_create_the_schema_is_told_what_to_run(place: Place, tool: Tool, nth: int) -> None:
    """Each of the two statements that the sentence names is enough."""
    with pytest.raises(ConfigurationError, match="may not create schema outbox in database") as refused:
        tool(place.url)
    assert "either as a superuser" in str(refused.value)

    place.execute(statements(refused.value)[nth])

    tool(place.url)


def test_a_role_that_may_not_create_tables_is_told_what_to_run(place: Place, tool: Tool) -> None:
    """A schema that another role made needs one GRANT of that role."""
    place.execute("CREATE SCHEMA outbox")
    with pytest.raises(ConfigurationError, match="may not create tables in schema outbox") as refused:
        tool(place.url)
    assert f"; as {place.administration.url.username}, and repeat it." in str(refused.value)

    place.execute(*statements(refused.value))

    tool(place.url)


def test_a_role_that_does_not_own_the_tables_is_told_who_does(place: Place, tool: Tool) -> None:
    """An upgrade changes tables, which only their owner may, so the sentence names the owner."""
    owner = place.administration.url.render_as_string(hide_password=False)
    init(owner)
    place.execute("UPDATE outbox.schema_version SET version_num = '0001'", f"GRANT outbox_pipeline TO {place.role}")

    with pytest.raises(ConfigurationError) as refused:
        tool(place.url)

    assert str(refused.value).startswith(f"Role {place.role} may not migrate schema outbox")
    assert str(refused.value).endswith(f"belong to {place.administration.url.username}: repeat it as postgres.")
    place.execute(f"UPDATE outbox.schema_version SET version_num = '{latest_version()}'")
    tool(owner)


def test_tables_of_clickhouse_that_are_there_are_not_created(stores: Stores, proxy: FaultyProxy) -> None:
    """ClickHouse asks for CREATE TABLE despite IF NOT EXISTS, so a repeated `outbox init` sends no such statement."""
    settings = through(proxy, stores.settings)
    with clickhouse_client(settings) as client:
        create_table(client)
        assert proxy.count("CREATE") == 0
        for name, kind in (("table", "TABLE"), ("fence", "TABLE"), ("completeness", "TABLE"), ("delivered", "VIEW")):
            client.run(f"DROP {kind} {{{name}:Identifier}}")

        create_table(client)

        assert proxy.count("CREATE") == 4
