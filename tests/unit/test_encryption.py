"""The doctor warns of URLs that lead elsewhere without TLS, or with a certificate that nobody checks."""

import pytest
from pydantic import SecretStr

from outbox_pipeline.monitoring.encryption import check_encryption
from outbox_pipeline.settings import Settings

OPEN = [
    ("postgres_url", "postgresql+psycopg://u:p@db.example.org/shop"),
    ("postgres_url", "postgresql+psycopg://u:p@db.example.org/shop?sslmode=require"),
    ("postgres_url", "postgresql+psycopg://u:p@/shop?host=10.0.0.7"),
    ("postgres_url", "postgresql+psycopg://u:p@/shop?host=localhost:5432&host=db.example.org:5432"),
    ("dagster_url", "postgresql+psycopg2://u:p@db.example.org/dagster"),
    ("clickhouse_url", "http://u:p@clickhouse.example.org:8123/events"),
    ("clickhouse_url", "https://u:p@clickhouse.example.org:8443/events?verify=False"),
    ("alert_webhook_url", "http://hooks.example.org/secret"),
]
FINE = [
    ("postgres_url", "postgresql+psycopg://u:p@db.example.org/shop?sslmode=verify-full&sslrootcert=/ca.pem"),
    ("postgres_url", "postgresql+psycopg://u:p@db.example.org/shop?sslmode=verify-ca&sslrootcert=/ca.pem"),
    ("postgres_url", "postgresql+psycopg://u:p@127.0.0.1:5433/shop"),
    ("postgres_url", "postgresql+psycopg://u:p@[::1]/shop"),
    ("postgres_url", "postgresql+psycopg://postgres@/outbox?host=/run/postgresql"),
    ("postgres_url", "postgresql+psycopg:///outbox"),
    ("dagster_url", "postgresql+psycopg2://u:p@localhost/dagster"),
    ("clickhouse_url", "https://u:p@clickhouse.example.org:8443/events"),
    ("clickhouse_url", "https://u:p@clickhouse.example.org:8443/events?verify=true&ca_cert=/ca.pem"),
    ("clickhouse_url", "https://u:p@localhost:8443/events?verify=false"),
    ("clickhouse_url", "http://127.0.0.1:8123/events"),
    ("alert_webhook_url", "https://hooks.example.org/secret"),
]


def settings(name: str, url: str) -> Settings:
    """Settings with one URL."""
    return Settings().model_copy(update={name: SecretStr(url)})


@pytest.mark.parametrize(("name", "url"), OPEN)
def test_an_open_way_is_a_warning(name: str, url: str) -> None:
    """The variable is named, what to write instead, and nothing of the URL; it fails nothing."""
    check = check_encryption(settings(name, url), {})

    assert (check.ok, check.is_warning) == (True, True)
    assert f"OUTBOX_{name.upper()} leads to another host" in check.message
    assert "example.org" not in check.message


@pytest.mark.parametrize(("name", "url"), FINE)
def test_a_safe_way_is_fine(name: str, url: str) -> None:
    """Loopback, sockets, https and a checked certificate need no warning."""
    check = check_encryption(settings(name, url), {})

    assert not check.is_warning
    assert check.message == "Every URL leads to this machine, or over TLS with a checked certificate."


def test_libpq_reads_the_environment_too() -> None:
    """What a URL leaves out may stand in PGSSLMODE and PGHOST."""
    far = settings("postgres_url", "postgresql+psycopg://u:p@db.example.org/shop")
    near = settings("postgres_url", "postgresql+psycopg:///shop")

    assert not check_encryption(far, {"PGSSLMODE": "verify-full"}).is_warning
    assert check_encryption(near, {"PGHOST": "db.example.org"}).is_warning
