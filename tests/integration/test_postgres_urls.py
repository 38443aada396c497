"""One URL, one reading: whatever form it has, the ledger's connection and the bulk read's lead to the same session."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

import pytest
from adbc_driver_postgresql import dbapi
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from outbox_pipeline.errors import ConfigurationError, SettingsError
from outbox_pipeline.postgres.conninfo import conninfo_of
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.settings import Settings, load_settings, shown_url
from tests.fixtures.servers import Servers

#: Users, passwords and databases as people and companies name them.
NAMES = (
    "my user",
    "user@corp",
    "a+b",
    "a%b",
    "a/b",
    "a:b",
    "a?b",
    "a#b",
    "é日",
    "a&b=c",
    "o'brien",
    "a\\b",
    " lead",
    '"q"',
)

SESSION = (
    "SELECT concat_ws(' | ', current_user, current_database(), current_setting('application_name'),"
    " current_setting('search_path'), current_setting('client_encoding'), current_setting('TimeZone'))"
)


@dataclass(frozen=True)
class Place:
    """Where the test server is, for URLs of any form."""

    user: str
    password: str
    host: str
    port: str

    def url(self, query: str = "", *, user: str = "", password: str = "", database: str = "postgres") -> str:
        """Return a URL with everything encoded that must be."""
        name, secret = quote(user or self.user, safe=""), quote(password or self.password, safe="")
        where = query or f"host={self.host}&port={self.port}"
        return f"postgresql+psycopg://{name}:{secret}@/{quote(database, safe='')}?{where}"


@pytest.fixture(scope="module")
def place(servers: Servers) -> Iterator[Place]:
    """The server, with a login role and a database of each name."""
    url = make_url(servers.postgres_url)
    owner = create_engine(url, isolation_level="AUTOCOMMIT")
    with ExitStack() as made, owner.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None

        def run(statement: str, name: str) -> None:
            driver.execute(sql.SQL(statement).format(sql.Identifier(name), sql.Literal(name)))

        for name in NAMES:
            run("CREATE ROLE {} LOGIN PASSWORD {}", name)
            made.callback(run, "DROP ROLE {}", name)
        for name in NAMES[:8]:
            run("CREATE DATABASE {}", name)
            made.callback(run, "DROP DATABASE {} WITH (FORCE)", name)
        host = str(url.query.get("host") or url.host)
        yield Place(str(url.username), str(url.password or "none"), host, str(url.port or 5432))
    owner.dispose()


def sessions(url: str) -> tuple[str, str]:
    """Return what the ledger's session says of itself, and what the bulk read's does."""
    engine = create_outbox_engine(Settings(postgres_url=SecretStr(url)), pooled=False)
    with engine.connect() as connection, dbapi.connect(conninfo_of(engine)) as bulk, bulk.cursor() as cursor:
        driver = connection.connection.driver_connection
        assert driver is not None
        # A server that trusts its clients takes any password.
        assert conninfo_to_dict(conninfo_of(engine)).get("password") == (driver.info.password or None)
        cursor.execute(SESSION)
        return str(connection.scalar(text(SESSION))), str(cursor.fetchone()[0])


@pytest.mark.parametrize("name", NAMES)
def test_names_and_passwords_of_any_characters_are_read_alike(place: Place, name: str) -> None:
    """User, password and database may hold whatever can be percent-encoded."""
    database = name if name in NAMES[:8] else "postgres"

    ledger, bulk = sessions(place.url(user=name, password=name, database=database))

    assert ledger == bulk
    assert ledger.startswith(f"{name} | {database} | outbox-pipeline | ")


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("host={host}&port={port}", "| outbox-pipeline |"),
        ("host=/nowhere,{host}&port=1,{port}&target_session_attrs=read-write", "| outbox-pipeline |"),
        ("host=/nowhere&host={host}&port=1&port={port}", "| outbox-pipeline |"),
        ("host=/nowhere:1&host={host}:{port}&target_session_attrs=any", "| outbox-pipeline |"),
        ("host=[::1]:1&host={host}:{port}", "| outbox-pipeline |"),
        ("host={host}&port={port}&options=-c%20search_path%3Dfoo", "| foo | UTF8 |"),
        (
            "host={host}&port={port}&options=-c+search_path%3Dfoo%20-c%20TimeZone%3DAsia/Kolkata",
            "| foo | UTF8 | Asia/K",
        ),
        ("host={host}&port={port}&options=-csearch_path%3Dfoo", "| foo | UTF8 |"),
        ("host={host}&port={port}&application_name=my%20app&connect_timeout=20", "| my app |"),
        ("host={host}&port={port}&client_encoding=latin1", "| UTF8 |"),
        ("host={host}&port={port}&client_encoding=auto&keepalives_idle=60", "| UTF8 |"),
        ("host={host}&port={port}&sslmode=prefer&gssencmode=disable", "| outbox-pipeline |"),
    ],
)
def test_parameters_are_read_alike(place: Place, query: str, shown: str) -> None:
    """Several hosts in every form, options and what libpq takes else; the encoding is ours whatever the URL says."""
    ledger, bulk = sessions(place.url(query.format(host=place.host, port=place.port)))

    assert ledger == bulk
    assert shown in ledger


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        ("postgresql+psycopg://u:p@[::1]:5433/shop", {"host": "::1", "port": "5433", "user": "u", "password": "p"}),
        ("postgresql+psycopg://u@h/shop?hostaddr=10.0.0.1", {"host": "h", "hostaddr": "10.0.0.1"}),
        ("postgresql+psycopg://one,two/shop", {"host": "one,two", "dbname": "shop"}),
        ("postgresql+psycopg:///?service=shop%20x", {"service": "shop x"}),
        (
            "postgresql+psycopg://h/?user=u&password=a%20b%27c&dbname=d",
            {"user": "u", "password": "a b'c", "dbname": "d"},
        ),
        (
            "postgresql+psycopg://h/shop?connect_timeout=20&keepalives_idle=99",
            {"connect_timeout": "20", "keepalives_idle": "99"},
        ),
        ("postgresql+psycopg://h/shop", {"connect_timeout": "5", "keepalives_idle": "10", "client_encoding": "UTF8"}),
    ],
)
def test_what_no_test_server_has_is_read_as_it_stands(url: str, parameters: dict[str, str]) -> None:
    """IPv6, addresses, services, and the URL's own patience before ours."""
    engine = create_outbox_engine(Settings(postgres_url=SecretStr(url)))

    found = conninfo_to_dict(conninfo_of(engine))

    assert {name: found.get(name) for name in parameters} == parameters


def test_both_look_for_a_socket_in_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a URL names no host, the folder is the one that psycopg was built with, unless the environment says it."""
    engine = create_outbox_engine(Settings(postgres_url=SecretStr("postgresql+psycopg:///shop?port=1")), pooled=False)

    with pytest.raises(OperationalError, match=r"\.s\.PGSQL\.1") as ledger:
        engine.connect()

    assert f"{conninfo_to_dict(conninfo_of(engine))['host']}/.s.PGSQL.1" in str(ledger.value)
    monkeypatch.setenv("PGHOST", "db.example.org")
    assert "host" not in conninfo_to_dict(conninfo_of(engine))


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("prepare_threshold=0&autocommit=1", "names autocommit, prepare_threshold, no parameter"),
        ("row_factory=x", "names row_factory, no parameter"),
        ("plugin=x", "names plugin, no parameter"),
        ("sslmode=prefer&sslmode=require", "names sslmode 2 times"),
        ("connect_timeout=soon", "names connect_timeout, and not as a whole number"),
        ("port=abc", "names port, and not as a whole number"),
        ("host=a:1&host=b:2&port=3", "names ports beside its hosts"),
        ("host=a,b,c&port=1,2", "names more or fewer ports than hosts"),
        ("options=a%00b", "NUL character"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(query: str, said: str) -> None:
    """No parameter changes how transactions begin, none is passed over, and the sentence has no password."""
    url = f"postgresql+psycopg://user:sekret@h/db?{query}"

    with pytest.raises(ConfigurationError, match=said) as refused:
        create_outbox_engine(Settings(postgres_url=SecretStr(url)))

    assert "sekret" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("u:se?kret@h/db", "write them as %40, %2F, %3F and %23"),
        ("u:se#kret@h/db", "write them as %40, %2F, %3F and %23"),
        ("u:12?kret@h/db", "write them as %40, %2F, %3F and %23"),
        ("u:12#kret@h:5432/db", "write them as %40, %2F, %3F and %23"),
        ("u:se/k?ret@h/db", "write them as %40, %2F, %3F and %23"),
        ("u:se@kret@h/db", "write them as %40, %2F, %3F and %23"),
        ("u:se[kret@h/db", r"write \[ and \] of a password as %5B and %5D"),
        ("u:se\N{ACCOUNT OF}kret@h/db", "what is no ASCII encoded too"),
        ("u:sekret@h:99999/db", "port that is no number up to 65535."),
        ("u:sekret@one:1,two:2/db", r"written as \?host=one:5432&host=two:5432"),
    ],
)
def test_a_password_that_is_not_encoded_is_named(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the URL is said as it is, without a part of it."""
    monkeypatch.setenv("OUTBOX_POSTGRES_URL", f"postgresql+psycopg://{address}")

    with pytest.raises(SettingsError, match=said) as refused:
        load_settings()

    assert "kret" not in str(refused.value)


@pytest.mark.parametrize("password", NAMES)
def test_no_form_of_a_url_shows_its_password(password: str) -> None:
    """In a message the password is stars, wherever the URL has it, and in the bulk driver's words it does not stand."""
    secret = f"x{password}sekret"
    for url in (
        f"postgresql+psycopg://u:{quote(secret, safe='')}@127.0.0.1:1/db",
        f"postgresql+psycopg://127.0.0.1:1/db?user=u&password={quote(secret, safe='')}",
        f"postgresql+psycopg://127.0.0.1:1/db?password={quote_plus(secret)}&user=u",
        f"postgresql+psycopg://u:{quote(secret, safe='')}@/db?host=127.0.0.1:1&host=127.0.0.1:1",
    ):
        engine = create_outbox_engine(Settings(postgres_url=SecretStr(url)), pooled=False)
        with pytest.raises(dbapi.OperationalError) as failed:
            dbapi.connect(conninfo_of(engine))

        assert "sekret" not in shown_url(url) + shown_url(engine.url.render_as_string()) + str(failed.value)
