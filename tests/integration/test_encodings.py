"""Databases in other encodings: text arrives in UTF-8 exactly, or there is a sentence."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import text

from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.postgres.schema import migrate
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.commands import run_outbox
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.servers import Servers
from tests.fixtures.stores import fresh_database, url_of


def encoded(encoding: str) -> str:
    """Return how CREATE DATABASE names this encoding, with a locale that goes with any."""
    return f"ENCODING '{encoding}' LOCALE_PROVIDER libc LOCALE 'C'"


@pytest.fixture
def outbox_in(servers: Servers, clickhouse_url: str) -> Iterator[Callable[[str], Stores]]:
    """Make an outbox in a database of this encoding."""
    with ExitStack() as databases:

        def make(encoding: str) -> Stores:
            name = databases.enter_context(fresh_database(servers, template="template0", options=encoded(encoding)))
            url = SecretStr(url_of(servers, name))
            settings = Settings(postgres_url=url, clickhouse_url=SecretStr(clickhouse_url))
            engine, client = create_outbox_engine(settings, pooled=False), open_client(settings)
            databases.callback(client.close)
            databases.callback(engine.dispose)
            migrate(engine)
            create_table(client)
            return Stores(engine, client, settings)

        yield make


@pytest.mark.parametrize(
    ("encoding", "said"), [("LATIN1", "Ã© ÿ £"), ("WIN1252", "€ Ž œ ™"), ("EUC_JP", "日本語 ソ ―")]
)
def test_text_of_another_encoding_arrives_exactly(outbox_in: Callable[[str], Stores], encoding: str, said: str) -> None:
    """PostgreSQL hands every character out in UTF-8, in contexts and in names, and the proof is made of that."""
    stores = outbox_in(encoding)
    publish(stores.engine, 2, event_type=said, context=f'{{"said": "{said}"}}')

    relay(stores, until_empty=True)

    assert_each_exactly_once(stores.engine, stores.client)
    rows = stores.client.rows("SELECT event_type, event_context FROM {table:Identifier}")
    assert [tuple(row.values()) for row in rows] == [(said, f'{{"said": "{said}"}}')] * 2


def test_bytes_without_a_meaning_are_named(outbox_in: Callable[[str], Stores]) -> None:
    """What the database's encoding has no character for cannot be delivered, and is no trouble that passes."""
    stores = outbox_in("WIN1252")
    with stores.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL client_encoding = 'WIN1252'")
        connection.execute(
            text(
                "INSERT INTO outbox.event (event_type, environment, event_context)"
                " VALUES ('t', 'test', CAST(convert_from('\\x228122', 'WIN1252') AS json))"
            )
        )
    batch = cut_batches(stores.engine, stores.settings, limit=1).batches[0]

    with pytest.raises(ConfigurationError, match="database's encoding and UTF-8 do not meet"):
        extract_events(stores.engine, batch.batch_id)


@pytest.mark.parametrize("command", ["init", "doctor", "relay", "status"])
def test_a_database_without_an_encoding_is_refused_with_a_sentence(
    servers: Servers, clickhouse_url: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every command says what is wrong with SQL_ASCII and what to do."""
    with fresh_database(servers, template="template0", options=encoded("SQL_ASCII")) as name:
        monkeypatch.setenv("OUTBOX_POSTGRES_URL", url_of(servers, name))
        monkeypatch.setenv("OUTBOX_CLICKHOUSE_URL", clickhouse_url)
        monkeypatch.setenv("OUTBOX_HOME", str(tmp_path / "home"))

        result = run_outbox(command)
    structlog.reset_defaults()

    assert result.exit_code == 1
    assert "has the encoding SQL_ASCII" in result.output
    assert "ENCODING 'UTF8'" in result.output
    assert "Traceback" not in result.output
