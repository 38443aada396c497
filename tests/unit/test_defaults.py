"""What nobody has to turn off or on: telemetry, checked certificates, names that are only names."""

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.errors import ConfigurationError, OutboxError, SettingsError
from outbox_pipeline.monitoring.webhook import post_json
from outbox_pipeline.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
CERTIFICATE = [
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
    "-days",
    "1",
]


@pytest.mark.parametrize("file", [ROOT / "dagster.yaml", files("outbox_pipeline.orchestration") / "dagster.yaml"])
def test_dagster_tells_its_makers_nothing(file: Path) -> None:
    """Its telemetry is off in both files that an instance may have."""
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["telemetry"] == {"enabled": False}


@pytest.mark.parametrize("name", ["event_log; DROP TABLE event_log", "a b", "`x`", "x'", "db.table", "", "1st"])
def test_the_one_identifier_from_a_setting_is_only_a_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else of a setting stands in a statement."""
    monkeypatch.setenv("OUTBOX_CLICKHOUSE_TABLE", name or " ")

    with pytest.raises(SettingsError, match="OUTBOX_CLICKHOUSE_TABLE"):
        load_settings()


@pytest.fixture
def unknown_server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of an HTTPS server with a certificate that nobody has signed, and the requests it got."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*CERTIFICATE, *map(str, names)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://localhost:{server.server_address[1]}", requests
        server.shutdown()
        thread.join()


def test_clickhouse_is_not_spoken_to_without_a_known_certificate(unknown_server: tuple[str, list[str]]) -> None:
    """No password and no event reaches a server that only says it is ClickHouse."""
    url, requests = unknown_server

    with pytest.raises(ConfigurationError, match=r"not trusted \(self[- ]signed certificate\).*\?ca_cert="):
        open_client(Settings(clickhouse_url=SecretStr(f"{url}/default")))
    assert requests == []


def test_the_webhook_is_not_told_without_a_known_certificate(unknown_server: tuple[str, list[str]]) -> None:
    """Nor is anything of an incident."""
    url, requests = unknown_server

    with pytest.raises(OutboxError):
        post_json(SecretStr(url), {"text": "a session holds events back"})
    assert requests == []
