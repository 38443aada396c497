"""What one client asks for never costs the embedded ClickHouse more than it may: memory, disk, sessions."""

import select
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from outbox_pipeline.embedded.chdb_engine import MAX_SESSIONS
from outbox_pipeline.embedded.clickhouse import running_clickhouse
from outbox_pipeline.embedded.homes import Home
from outbox_pipeline.embedded.http_protocol import LONGEST_HEAD_BYTES
from outbox_pipeline.processes import wait_until
from tests.fixtures.plain_http import Ask, Connect
from tests.fixtures.relay_memory import peak_bytes

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.embedded_only

#: What a few kilobytes stand for.
_BOMB_BYTES = 600_000_000

#: What the server may grow by meanwhile; a statement of the longest kind is in memory a few times.
_ALLOWED_BYTES = 150_000_000


@pytest.fixture
def server_peak(home: Path, client: Client) -> Iterator[None]:
    """Fail when the server's memory grew by more than is allowed during the test."""
    client.command("CREATE TABLE swallowed (a String) ENGINE = Null")
    client.raw_insert("swallowed", insert_block=zstd.compress(b"warm\n" * 100_000), fmt="TSV", compression="zstd")
    handle = running_clickhouse(Home(home))
    assert handle is not None
    before = peak_bytes(handle.pid)
    yield
    assert peak_bytes(handle.pid) - before < _ALLOWED_BYTES


def bomb(piece: bytes) -> bytes:
    """Return *piece* repeated to 600 MB as a few kilobytes of zstd."""
    frame = zstd.ZstdCompressor()
    parts = [frame.compress(piece * (1_000_000 // len(piece))) for _ in range(_BOMB_BYTES // 1_000_000)]
    return b"".join([*parts, frame.flush()])


def test_statement_that_unpacks_without_end_is_refused(ask: Ask, server_peak: None) -> None:
    """18 KB of zstd that stand for 600 MB of a statement cost the server next to nothing."""
    answer = ask(bomb(b"\0"), headers={"Content-Encoding": "zstd"})

    assert answer.status == 400
    assert b"Max query size exceeded" in answer.read()


def test_values_that_unpack_without_end_are_refused(ask: Ask, server_peak: None) -> None:
    """VALUES are part of the statement, and bounded like it."""
    answer = ask(bomb(b"('a'),"), headers={"Content-Encoding": "zstd"}, query="INSERT INTO swallowed VALUES")

    assert answer.status == 400
    assert b"Max query size exceeded" in answer.read()


def test_data_that_unpacks_goes_to_the_disk(ask: Ask, server_peak: None) -> None:
    """600 MB of rows from a few kilobytes are received, and are never in memory at once."""
    # The engine, which could map the file into memory, refuses the table before it reads any.
    answer = ask(bomb(b"x" * 999 + b"\n"), headers={"Content-Encoding": "zstd"}, query="INSERT INTO missing FORMAT TSV")

    assert answer.headers["X-ClickHouse-Exception-Code"] == "60"


def test_form_without_end_is_refused(ask: Ask, server_peak: None) -> None:
    """A form is in memory as a whole, so it is bounded like a statement."""
    head = b'--b\r\nContent-Disposition: form-data; name="param_a"\r\n\r\n'
    answer = ask(
        head + b"x" * 100_000_000 + b"\r\n--b--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=b"},
        query="SELECT {a:String}",
    )

    assert answer.status == 400
    assert b"Max query size exceeded" in answer.read()


def test_long_list_of_values_is_a_statement(ask: Ask) -> None:
    """A client that raises max_query_size may send a list of ids that ClickHouse would refuse by default."""
    statement = f"SELECT 7 IN ({', '.join(map(str, range(60_000)))})".encode()

    assert len(statement) > 262_144 + 100_000
    assert ask(statement, max_query_size="5000000").read() == b"1\n"


def test_an_address_may_be_longer_than_64_kilobytes(ask: Ask) -> None:
    """A query in the address arrives whole, beyond what the parser of addresses counts to."""
    answer = ask(method="GET", query=f"SELECT length('{'x' * 200_000}')")

    assert answer.read() == b"200000\n"


@pytest.mark.parametrize("line", [b"GET /?a=", b"GET / HTTP/1.1\r\nX-Long: "])
def test_a_head_without_end_is_refused(connect: Connect, line: bytes) -> None:
    """The head is read before the token is looked at, so it has a limit; then the connection ends."""
    connection = connect()
    connection.connect()
    connection.sock.sendall(line + b"x" * (LONGEST_HEAD_BYTES - 1000))
    assert select.select([connection.sock], [], [], 0)[0] == []

    connection.sock.sendall(b"x" * 1000)

    assert connection.sock.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_the_head_of_a_later_request_has_the_same_limit(connect: Connect) -> None:
    """What came before on the connection, bodies too, does not count."""
    connection = connect()
    for _ in range(3):
        body = b" " * 200_000
        connection.request("POST", "/", body=b"SELECT 1" + body, headers={"X-Long": "x" * (LONGEST_HEAD_BYTES // 2)})
        assert connection.getresponse().read() == b"1\n"


def test_number_of_sessions_is_bounded(ask: Ask) -> None:
    """One session more than the limit is refused with what to do; those there are go on, and ended ones make room."""
    # Other tests' sessions may be there yet.
    opened = 0
    while (answer := ask(b"SELECT 1", session_id=f"bounded-{opened}", session_timeout="3600")).status == 200:
        opened += 1
        assert opened <= MAX_SESSIONS
    text = answer.read().decode()

    assert opened > MAX_SESSIONS // 2
    assert (answer.status, answer.headers["X-ClickHouse-Exception-Code"]) == (503, "202")
    assert "session_id" in text
    assert ask(b"SELECT 1").status == 200
    for number in range(opened):
        assert ask(b"SELECT 1", session_id=f"bounded-{number}", session_timeout="0").status == 200
    assert wait_until(lambda: ask(b"SELECT 1", session_id="one more").status == 200, seconds=10)


def test_a_form_that_makes_no_sense_is_told(ask: Ask) -> None:
    """A part without a name is the client's mistake, and no error of the server."""
    answer = ask(b"--b\r\n\r\nx\r\n--b--\r\n", headers={"Content-Type": "multipart/form-data; boundary=b"})

    assert answer.status == 400
    assert answer.headers["X-ClickHouse-Exception-Code"] == "36"


def test_a_form_of_many_parts_keeps_nobody_waiting(connect: Connect) -> None:
    """It is taken apart beside the event loop: whoever asks meanwhile is answered again and again."""
    form, other = connect(), connect()
    form.request("POST", "/", body=b"--b\r\n\r\n" * 20_000, headers={"Content-Type": "multipart/form-data; boundary=b"})
    answered = 0
    while not select.select([form.sock], [], [], 0)[0]:
        other.request("GET", "/ping")
        assert other.getresponse().read() == b"Ok.\n"
        answered += 1

    assert form.getresponse().status == 400
    # Were they answered in turn, these would come before the form and behind it, and hardly any between.
    assert answered >= 10
