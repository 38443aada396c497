"""What OUTBOX_CLICKHOUSE_URL says arrives at a server: names as they are, the path of a proxy, certificates."""

import shutil
import socket
import ssl
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from pydantic import SecretStr

from outbox_pipeline.clickhouse.client import clickhouse_client
from outbox_pipeline.errors import ConfigurationError, OutboxError
from outbox_pipeline.settings import Settings
from tests.fixtures.certificates import certificate
from tests.fixtures.proxy import FaultyProxy, Injection, Request

NAMES = ("my db", "p@ss/w%rd#1", "a+b", "a%40b", "é日")

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


class Encrypted(FaultyProxy):
    """Speaks TLS with its clients, and keeps the heads of their requests."""

    def __init__(self, server: tuple[str, int], context: ssl.SSLContext) -> None:
        """Start listening."""
        self._context = context
        self.heads: list[str] = []
        super().__init__(server)

    def _note(self, request: Request) -> Injection | None:
        self.heads.append(request.head.decode())
        return super()._note(request)

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            super()._serve(self._context.wrap_socket(client, server_side=True))


#: Starts such a proxy in front of ClickHouse, with the certificate `own`; gives it and the URL to it.
Encrypt = Callable[..., tuple[str, Encrypted]]


@pytest.fixture
def refusing() -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """The port of a server that knows no account, and path and credentials of what it was asked."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((urlsplit(self.path).path, b64decode(self.headers["Authorization"].split()[1]).decode()))
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1], asked
        server.shutdown()
        thread.join()


@pytest.fixture
def encrypt(clickhouse_url: str, tmp_path: Path) -> Iterator[Encrypt]:
    """What starts such a proxy; with *clients* it wants one of these certificates."""
    proxies: list[FaultyProxy] = []
    certificate(tmp_path / "own", "localhost")

    def start(query: str = "", *, host: str = "localhost", clients: Path | None = None) -> tuple[str, Encrypted]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "own" / "cert.pem", tmp_path / "own" / "key.pem")
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients)
        parts = urlsplit(clickhouse_url)
        proxy = Encrypted((parts.hostname or "", parts.port or 8123), context)
        proxies.append(proxy)
        user = parts.netloc.rpartition("@")[0]
        return f"https://{user}@{host}:{proxy.port}{parts.path}{query}", proxy

    yield start
    for proxy in proxies:
        proxy.close()


def seven(url: str) -> list[dict[str, int]]:
    """Ask for a number."""
    with clickhouse_client(Settings(clickhouse_url=SecretStr(url))) as client:
        return client.rows("SELECT 7 AS seven")


@pytest.mark.parametrize("name", NAMES)
def test_user_and_password_arrive_as_they_are(refusing: tuple[int, list[tuple[str, str]]], name: str) -> None:
    """Decoded once, behind the path that a proxy needs, and shown nowhere."""
    port, asked = refusing
    written = quote(name, safe="")

    with pytest.raises(ConfigurationError, match="refuses the credentials") as refused:
        seven(f"http://{written}:x{written}sekret@127.0.0.1:{port}/way/to%20it/events")

    assert set(asked) == {("/way/to%20it", f"{name}:x{name}sekret")}
    assert "sekret" not in str(refused.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_database_may_have_any_name(clickhouse_url: str, name: str) -> None:
    """Statements run where the URL says."""
    base = clickhouse_url.rpartition("/")[0]
    with clickhouse_client(Settings(clickhouse_url=SecretStr(clickhouse_url))) as client:
        client.run("CREATE DATABASE {name:Identifier}", {"name": name})
        try:
            there = SecretStr(f"{base}/{quote(name, safe='')}")
            with clickhouse_client(Settings(clickhouse_url=there)) as other:
                found = other.rows("SELECT currentDatabase() AS it")
        finally:
            client.run("DROP DATABASE {name:Identifier}", {"name": name})

    assert found == [{"it": name}]


@needs_openssl
def test_an_authority_of_ones_own_is_trusted_by_its_file(encrypt: Encrypt, tmp_path: Path) -> None:
    """Without `ca_cert` the sentence says to write it, and doing that helps."""
    with pytest.raises(ConfigurationError, match="not trusted") as refused:
        seven(encrypt()[0])
    assert "?ca_cert=/path/to/ca.pem" in str(refused.value)

    assert seven(encrypt(f"?ca_cert={tmp_path}/own/cert.pem")[0]) == [{"seven": 7}]


@needs_openssl
@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_verify_false_asks_for_no_certificate(encrypt: Encrypt) -> None:
    """TLS without knowing with whom."""
    assert seven(encrypt("?verify=false")[0]) == [{"seven": 7}]


@needs_openssl
def test_a_certificate_of_another_host_is_refused(encrypt: Encrypt, tmp_path: Path) -> None:
    """With the remedy for that."""
    with pytest.raises(ConfigurationError, match="write the host in OUTBOX_CLICKHOUSE_URL as the certificate names"):
        seven(encrypt(f"?ca_cert={tmp_path}/own/cert.pem", host="127.0.0.1")[0])


@needs_openssl
def test_a_certificate_of_the_client_is_shown_to_the_server(encrypt: Encrypt, tmp_path: Path) -> None:
    """Where a proxy lets no other client in; user and password still sign in at ClickHouse behind it."""
    certificate(tmp_path / "client", "outbox")
    trusting = f"?ca_cert={tmp_path}/own/cert.pem"
    ours = f"&client_cert={tmp_path}/client/cert.pem&client_cert_key={tmp_path}/client/key.pem"
    known = tmp_path / "client" / "cert.pem"

    # How it says so depends on what arrives first, its alert or the end of the connection.
    with pytest.raises(OutboxError):
        seven(encrypt(trusting, clients=known)[0])

    assert seven(encrypt(trusting + ours, clients=known)[0]) == [{"seven": 7}]


@needs_openssl
def test_a_certificate_signs_in_where_the_url_has_no_password(encrypt: Encrypt, tmp_path: Path) -> None:
    """The user is named beside it, and no password is sent; whether the server knows that way is its matter."""
    certificate(tmp_path / "client", "outbox")
    ours = f"&client_cert={tmp_path}/client/cert.pem&client_cert_key={tmp_path}/client/key.pem"
    url, proxy = encrypt(f"?ca_cert={tmp_path}/own/cert.pem{ours}", clients=tmp_path / "client" / "cert.pem")

    with pytest.raises(OutboxError):
        seven(f"https://team%40corp@{url.rpartition('@')[2]}")

    assert proxy.heads
    for head in map(str.lower, proxy.heads):
        assert "x-clickhouse-user: team@corp\r\n" in head
        assert "x-clickhouse-ssl-certificate-auth: on\r\n" in head
        assert "authorization:" not in head


@pytest.mark.embedded_only
def test_a_port_without_tls_is_named(clickhouse_url: str) -> None:
    """What to correct is said, and not what the library of TLS says; other servers may just hang up."""
    with pytest.raises(OutboxError, match="answers without TLS: correct the port in OUTBOX_CLICKHOUSE_URL"):
        seven(clickhouse_url.replace("http://", "https://"))
