"""`sslmode=verify-full` in our URLs reaches each of the three drivers: none speaks to a server that it cannot check."""

import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from outbox_pipeline.errors import ConfigurationError, OutboxError
from outbox_pipeline.postgres.dagster_storage import read_dagster_state
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.settings import Settings
from tests.fixtures.certificates import certificate

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


class Postgres:
    """Takes connections as PostgreSQL does, up to the first message after the handshake; that it got one is noted."""

    def __init__(self, folder: Path) -> None:
        """Listen with the certificate of *folder*."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.is_spoken_to = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            with plain:
                self._greet(plain)

    def _greet(self, plain: socket.socket) -> None:
        plain.settimeout(5)
        if plain.recv(8) != b"\x00\x00\x00\x08\x04\xd2\x16\x2f":
            self.is_spoken_to = True  # in plain text
            return
        plain.sendall(b"S")
        try:
            with self._context.wrap_socket(plain, server_side=True) as safe:
                self.is_spoken_to |= bool(safe.recv(8))
        except OSError:
            return


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A server whose certificate is for `localhost`, in the folder `own`."""
    certificate(tmp_path / "own", "localhost")
    server = Postgres(tmp_path / "own")
    yield server
    server.close()


def by_psycopg(url: str) -> None:
    """Open a ledger transaction."""
    with ledger_transaction(create_outbox_engine(_settings(url), pooled=False)) as connection:
        connection.execute(text("SELECT 1"))


def by_adbc(url: str) -> None:
    """Read a batch."""
    extract_events(create_outbox_engine(_settings(url), pooled=False), uuid4())


def by_psycopg2(url: str) -> None:
    """Read Dagster's storage."""
    read_dagster_state(url.replace("+psycopg:", "+psycopg2:"))


def _settings(url: str) -> Settings:
    return Settings(postgres_url=SecretStr(url))


DRIVERS = [by_psycopg, by_psycopg2, by_adbc]


@pytest.mark.parametrize("connect", DRIVERS)
@pytest.mark.parametrize(
    ("host", "root", "is_safe"),
    [("localhost", "own", True), ("localhost", "other", False), ("127.0.0.1", "own", False)],
)
def test_a_certificate_is_checked(
    postgres: Postgres, tmp_path: Path, connect: Callable[[str], None], host: str, root: str, *, is_safe: bool
) -> None:
    """A driver speaks to the server with the right certificate, and not with an unknown one or another name."""
    certificate(tmp_path / "other", "localhost")
    url = f"postgresql+psycopg://u:sekret@{host}:{postgres.port}/db"

    with pytest.raises(OutboxError) as ended:
        connect(f"{url}?sslmode=verify-full&sslrootcert={tmp_path / root / 'cert.pem'}")

    assert postgres.is_spoken_to is is_safe
    assert "sekret" not in str(ended.value)
    if not is_safe:
        assert "certificate" in str(ended.value)
    if not is_safe and connect is by_psycopg:
        assert isinstance(ended.value, ConfigurationError)


@pytest.mark.parametrize("connect", DRIVERS)
def test_without_a_mode_nothing_is_checked(postgres: Postgres, connect: Callable[[str], None]) -> None:
    """The default of libpq speaks to whoever answers, which is what `outbox doctor` warns of."""
    with pytest.raises(OutboxError):
        connect(f"postgresql+psycopg://u:sekret@127.0.0.1:{postgres.port}/db")

    assert postgres.is_spoken_to
