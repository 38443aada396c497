"""A home of embedded engines for each module, and clients of its ClickHouse."""

from collections.abc import Iterator
from pathlib import Path

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
