"""A proxy in the environment gets nothing that is for a server on this machine."""

import pytest
from pydantic import SecretStr

from outbox_pipeline.clickhouse.client import clickhouse_client
from outbox_pipeline.errors import OutboxError, TransientError
from outbox_pipeline.settings import Settings
from tests.fixtures.contacts import Contacts


@pytest.fixture
def proxy(contacts: Contacts, monkeypatch: pytest.MonkeyPatch) -> Contacts:
    """Name a proxy in the environment; ask for it last, for the other fixtures' clients obey it."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://{contacts.address}")
    for name in ("http_proxy", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return contacts


@pytest.mark.embedded_only
def test_statements_for_this_machine_go_straight_there(settings: Settings, proxy: Contacts) -> None:
    """Neither statements nor events of the local engine travel to a company's proxy."""
    with clickhouse_client(settings) as client:
        assert client.rows("SELECT 7 AS seven") == [{"seven": 7}]

    assert proxy.count == 0


@pytest.mark.embedded_only
def test_proxy_that_is_away_does_not_matter(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens on port 9, and nothing needs it to."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with clickhouse_client(settings) as client:
        assert client.rows("SELECT 7 AS seven") == [{"seven": 7}]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_server_elsewhere_that_is_not_reached_names_the_proxy(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """Whoever wonders why a server that runs cannot be reached learns that a proxy is set, and not its password."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://user:do-not-show@127.0.0.1:9")
    settings = Settings(clickhouse_url=SecretStr(f"{scheme}://clickhouse.invalid:8123/default"))

    with pytest.raises(TransientError, match="HTTP_PROXY or HTTPS_PROXY") as caught, clickhouse_client(settings):
        pass
    assert "do-not-show" not in str(caught.value)


def test_server_elsewhere_goes_by_the_proxy(proxy: Contacts) -> None:
    """Where a proxy is the way out, it is used."""
    settings = Settings(clickhouse_url=SecretStr("http://clickhouse.invalid:8123/default"))
    with pytest.raises(OutboxError, match="A proxy is set in the environment"), clickhouse_client(settings):
        pass

    assert proxy.count >= 1
