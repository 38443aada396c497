"""What is for this machine never goes through a proxy of the environment."""

import pytest
from pydantic import SecretStr

from outbox_pipeline.errors import TransientError
from outbox_pipeline.loopback import is_loopback
from outbox_pipeline.monitoring.webhook import post_json
from outbox_pipeline.orchestration.host.stack import _answers
from tests.fixtures.contacts import Contacts
from tests.fixtures.webhook import receiving


@pytest.fixture
def proxy(contacts: Contacts, monkeypatch: pytest.MonkeyPatch) -> Contacts:
    """Name a proxy in the environment, in every spelling."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{contacts.address}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return contacts


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost", "LOCALHOST.", "a.localhost"])
def test_loopback_is_known_by_name_and_address(host: str) -> None:
    """Everything that a URL may call this machine's loopback."""
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["example.org", "10.0.0.1", "128.0.0.1", "localhost.example.org", "127.0.0.1.example.org", "", None]
)
def test_other_hosts_are_no_loopback(host: str | None) -> None:
    """A name that only looks like it is another machine's."""
    assert not is_loopback(host)


def test_webhook_on_loopback_needs_no_proxy(proxy: Contacts) -> None:
    """An alert for a receiver on this machine arrives, and the proxy gets nothing."""
    with receiving() as receiver:
        post_json(SecretStr(receiver.url), {"incident": "x", "status": "firing"})

    assert receiver.asked_count == 1
    assert proxy.count == 0


def test_webhook_elsewhere_goes_by_the_proxy(proxy: Contacts) -> None:
    """A company's way out is used where it is meant to be."""
    with pytest.raises(TransientError, match="OUTBOX_ALERT_WEBHOOK_URL"):
        post_json(SecretStr("http://hooks.example.org/x"), {"incident": "x"})

    assert proxy.count == 1


def test_own_webserver_is_asked_without_a_proxy(proxy: Contacts) -> None:
    """`outbox up` finds its UI, which answers with 404 here, and the proxy gets nothing."""
    with receiving() as receiver:
        assert not _answers(receiver.url.rpartition("/services")[0])

    assert proxy.count == 0
