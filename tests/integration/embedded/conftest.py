"""A home of embedded engines for each module, and clients of its ClickHouse."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client

from outbox_pipeline.embedded.engines import embedded_engines
from tests.fixtures.plain_http import Ask, Connect, Connection


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder no engine has used."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def clickhouse_url(home: Path) -> Iterator[str]:
    """Return where the ClickHouse of this module is served."""
    with embedded_engines(home, postgres=False) as urls:
        assert urls.clickhouse is not None
        yield urls.clickhouse


@pytest.fixture(scope="module")
def module_client(clickhouse_url: str) -> Iterator[Client]:
    """Return a client of the module's ClickHouse: to open one takes three requests."""
    with clickhouse_connect.get_client(dsn=clickhouse_url) as client:
        yield client


@pytest.fixture
def client(module_client: Client) -> Iterator[Client]:
    """Return a client with a session of its own, and clear away what the test made."""
    module_client.set_client_setting("session_id", str(uuid4()))
    yield module_client
    for (name,) in module_client.query("SELECT name FROM system.tables WHERE database = 'default'").result_rows:
        module_client.command("DROP TABLE {name:Identifier}", parameters={"name": name})


@pytest.fixture
def bare_url(clickhouse_url: str) -> str:
    """Return where the server is, without user and password."""
    return f"http://127.0.0.1:{urlsplit(clickhouse_url).port}"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return a file that the server's account may read and its clients may not."""
    file = tmp_path / "secret.txt"
    file.write_text("do-not-show")
    return file


@pytest.fixture
def connect(clickhouse_url: str) -> Iterator[Connect]:
    """Return a maker of plain HTTP connections, closed at the end; another URL may be given."""
    opened: list[Connection] = []

    def make(url: str = clickhouse_url) -> Connection:
        opened.append(Connection(url))
        return opened[-1]

    yield make
    for connection in opened:
        connection.close()


@pytest.fixture
def ask(connect: Connect) -> Ask:
    """Return a function that sends one request."""

    def send(
        body: bytes = b"",
        *,
        method: str = "POST",
        path: str = "/",
        headers: dict[str, str] | None = None,
        **parameters: str,
    ) -> http.client.HTTPResponse:
        connection = connect()
        connection.request(method, f"{path}?{urlencode(parameters)}", body=body or None, headers=headers or {})
        return connection.getresponse()

    return send
