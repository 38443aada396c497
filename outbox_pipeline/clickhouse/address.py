"""What OUTBOX_CLICKHOUSE_URL says: where the server is, who signs in there, and which certificates count.

Invariant: each part is percent-decoded once, and what is not understood is refused by its name: a parameter that is
passed over would lead to another database, or to a server that is not checked.
"""

import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from outbox_pipeline.errors import ConfigurationError

_NAME = "OUTBOX_CLICKHOUSE_URL"
_FILES = ("ca_cert", "client_cert", "client_cert_key")
_PARAMETERS = (*_FILES, "verify")

_IN_FRONT = "write user and password before the host, https://user:password@host:8443/database"
_AT_THE_HOST = "write host and port before the path, https://user@host:8443/database"
_HTTPS = "begin the URL with https:// for TLS, with http:// for none"
_UNCHECKED = "verify=false is what leaves the certificate unchecked"
#: What to write for what other clients of ClickHouse take.
_INSTEAD = {
    "database": "write the database as the last part of the path, https://user@host:8443/database",
    "db": "write the database as the last part of the path, https://user@host:8443/database",
    "proxy_path": "write the path of a proxy before the database, https://user@host/path/database",
    **dict.fromkeys(("user", "username", "user_name", "password"), _IN_FRONT),
    **dict.fromkeys(("host", "port"), _AT_THE_HOST),
    **dict.fromkeys(("secure", "ssl", "tls", "protocol", "interface", "scheme"), _HTTPS),
    **dict.fromkeys(("insecure", "ssl_verify", "sslmode"), _UNCHECKED),
    **dict.fromkeys(("sslrootcert", "ca_certs", "cafile"), "ca_cert=/path/to/ca.pem names the authority's certificate"),
}
_OTHERWISE = (
    "take it out; the parameters are ca_cert, client_cert, client_cert_key and verify, and a setting of ClickHouse is "
    "set for its user there"
)


@dataclass(frozen=True)
class Address:
    """A server, an account and a database, decoded; it holds the password, so never show it."""

    interface: str
    host: str
    port: int
    #: What a proxy tells its servers apart by; empty or beginning with a slash, as it stands in the URL.
    path: str
    username: str
    password: str = field(repr=False)
    database: str
    ca_cert: str | None = None
    client_cert: str | None = None
    client_cert_key: str | None = None
    verify: bool = True

    @property
    def tls_mode(self) -> str | None:
        """How the driver uses a client's certificate: with a password it is for the way alone, without it signs in."""
        return "strict" if self.client_cert and self.password else None


def read_url(text: str) -> Address:
    """Return what the URL says.

    Raises ConfigurationError when it cannot be meant: no host, a parameter that is unknown or written twice, a file
    that cannot be used.
    """
    parts = urlsplit(text)
    if not parts.hostname:
        raise ConfigurationError(f"{_NAME} names no host: write it as http://user@host:8123/database.")
    path, _, database = parts.path.strip("/").rpartition("/")
    address = Address(
        interface=parts.scheme,
        host=parts.hostname,
        port=parts.port or (8443 if parts.scheme == "https" else 8123),
        path=path and f"/{path}",
        username=_decoded(parts.username or "default"),
        password=_decoded(parts.password or ""),
        database=_decoded(database) or "default",
        **_tls(parts.query, parts.scheme),
    )
    if ":" in address.username:
        raise ConfigurationError(
            f"{_NAME} has a user with a colon in its name, which HTTP cannot send: give the user another name."
        )
    _require_certificates(address)
    return address


def _decoded(part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"{_NAME} has a % that stands for no character in UTF-8: write a % of a user, password or database as %25."
        ) from None


def _tls(query: str, scheme: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{_NAME} has a parameter that is no text in UTF-8: correct its % signs.") from None
    names = [name for name, _ in pairs]
    for name in names:
        if name not in _PARAMETERS:
            raise ConfigurationError(f"{_NAME} names {name}, no parameter of it: {_instead_of(name)}.")
        if names.count(name) > 1:
            raise ConfigurationError(f"{_NAME} names {name} {names.count(name)} times: once is enough.")
        if scheme != "https":
            raise ConfigurationError(
                f"{_NAME} names {name}, which is for TLS, and begins with http://: write https://, or take it out."
            )
    return dict(_values(pairs))


def _instead_of(name: str) -> str:
    if name in _INSTEAD:
        return _INSTEAD[name]
    near = get_close_matches(name, _PARAMETERS, n=1, cutoff=0.8)
    return f"did you mean {near[0]}" if near else _OTHERWISE


def _values(pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str | bool]]:
    for name, value in pairs:
        if name in _FILES:
            # Each process has a folder of its own, and Dagster starts several.
            if not Path(value).is_absolute():
                raise ConfigurationError(f"{_NAME} names {name} without a whole path: write {name}=/path/to/file.pem.")
            yield name, value
        elif value.lower() not in ("true", "false"):
            raise ConfigurationError(f"{_NAME} names {name}, and neither as true nor as false.")
        else:
            yield name, value.lower() == "true"


def _require_certificates(address: Address) -> None:
    if address.client_cert_key and not address.client_cert:
        raise ConfigurationError(f"{_NAME} names client_cert_key without client_cert: name the certificate too.")
    if address.ca_cert and not address.verify:
        raise ConfigurationError(f"{_NAME} names ca_cert, and verify=false, with which it is not used: take one out.")
    if address.ca_cert:
        _require_usable("ca_cert", "certificates", lambda: ssl.create_default_context(cafile=address.ca_cert))
    if certificate := address.client_cert:
        context = ssl.create_default_context()
        key = address.client_cert_key
        names = "client_cert and client_cert_key" if key else "client_cert"
        # Without a password OpenSSL would ask for one on the terminal.
        _require_usable(
            names,
            "a certificate and its key without a passphrase",
            lambda: context.load_cert_chain(certificate, key, password=""),
        )


def _require_usable(names: str, content: str, load: Callable[[], object]) -> None:
    try:
        load()
    except (OSError, ValueError) as error:
        # An error of TLS says nothing a person can use, and is an OSError too.
        why = "" if isinstance(error, ssl.SSLError) else f" ({getattr(error, 'strerror', None) or 'unreadable'})"
        raise ConfigurationError(
            f"{_NAME} names {names}, which cannot be used{why}: name a file in PEM form with {content} that this "
            "account may read."
        ) from None
