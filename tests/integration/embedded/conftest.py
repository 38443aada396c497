"""A home of embedded engines for each module, and clients of its ClickHouse."""

import http.client
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client

from outbox_pipeline.embedded.engines import embedded_engines


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


@pytest.fixture
def client(clickhouse_url: str) -> Iterator[Client]:
    """Return a client, and clear away what the test made."""
    with clickhouse_connect.get_client(dsn=clickhouse_url) as client:
        yield client
        for (name,) in client.query("SELECT name FROM system.tables WHERE database = 'default'").result_rows:
            client.command("DROP TABLE {name:Identifier}", parameters={"name": name})


class Connection(http.client.HTTPConnection):
    """A plain HTTP connection that shows the user and password of the URL, if there are any, with each request."""

    def __init__(self, url: str) -> None:
        """Lead to the server of *url*."""
        parts = urlsplit(url)
        super().__init__("127.0.0.1", parts.port or 0, timeout=20)
        self._credentials = parts.netloc.rpartition("@")[0].encode()

    def putrequest(self, *arguments: Any, **options: Any) -> None:
        """Begin a request."""
        super().putrequest(*arguments, **options)
        if self._credentials:
            self.putheader("Authorization", f"Basic {b64encode(self._credentials).decode()}")


Connect = Callable[..., Connection]
Ask = Callable[..., http.client.HTTPResponse]


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
