"""Whether what the URLs lead to is reached over TLS, with a certificate that is checked.

Looks at the URLs alone and connects nowhere: a server that is asked for TLS and cannot do it is another check's matter.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from sqlalchemy import make_url

from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.settings import Settings

#: verify-ca leaves the name unchecked and wants a root certificate of its own, so it fits servers without a name.
_CHECKED = ("verify-full", "verify-ca")

_NAME = "encryption"


def check_encryption(settings: Settings, environment: Mapping[str, str]) -> Check:
    """Warn of each URL that leads to another host in plain text, or without a check of its certificate."""
    postgres = {"OUTBOX_POSTGRES_URL": settings.postgres_url, "OUTBOX_DAGSTER_URL": settings.dagster_url}
    over_http = {
        "OUTBOX_CLICKHOUSE_URL": settings.clickhouse_url,
        "OUTBOX_ALERT_WEBHOOK_URL": settings.alert_webhook_url,
    }
    open_ones = [
        f"{name} leads to another host without sslmode=verify-full"
        for name, url in postgres.items()
        if url is not None and _is_open_postgres(url.get_secret_value(), environment)
    ]
    open_ones += [
        f"{name} leads to another host by http"
        for name, url in over_http.items()
        if url is not None and _is_open_http(url.get_secret_value())
    ]
    clickhouse = settings.clickhouse_url
    if clickhouse is not None and _is_unchecked_https(clickhouse.get_secret_value()):
        open_ones.append("OUTBOX_CLICKHOUSE_URL leads to another host by https with verify=false")
    if not open_ones:
        return Check(_NAME, True, "Every URL leads to this machine, or over TLS with a checked certificate.")
    said = (
        f"{'; '.join(open_ones)}. Passwords and events can be read or changed on the way: write "
        "?sslmode=verify-full&sslrootcert=… or https without verify=false, unless something else protects the way."
    )
    return Check(_NAME, True, said, is_warning=True)


def _is_open_postgres(url: str, environment: Mapping[str, str]) -> bool:
    parts = make_url(url)
    given = {name: value if isinstance(value, str) else ",".join(value) for name, value in parts.query.items()}
    # libpq takes from the environment what the URL does not say.
    mode = given.get("sslmode") or environment.get("PGSSLMODE", "")
    hosts = given.get("hostaddr") or given.get("host") or parts.host or environment.get("PGHOST", "")
    return mode not in _CHECKED and any(not _is_here(_without_port(host)) for host in hosts.split(","))


def _without_port(host: str) -> str:
    # SQLAlchemy writes several hosts as host=one:5432.
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and ":" not in name else host


def _is_open_http(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and not _is_here(parts.hostname or "")


def _is_unchecked_https(url: str) -> bool:
    parts = urlsplit(url)
    is_unchecked = ("verify", "false") in [(name, value.lower()) for name, value in parse_qsl(parts.query)]
    return parts.scheme == "https" and is_unchecked and not _is_here(parts.hostname or "")


def _is_here(host: str) -> bool:
    """Tell whether a host is this machine: loopback, or a socket's folder."""
    if not host or host.startswith(("/", "@")) or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
