"""The server answers while it works, stops what nobody waits for, and refuses what it cannot do."""

import hashlib
import http.client
import json
import random
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
from clickhouse_connect.driver.client import Client

from outbox_pipeline.processes import wait_until
from tests.fixtures.plain_http import Ask, Connect

ENDLESS = "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))"


def running(client: Client, text: str) -> int:
    """Return how many queries with *text* run."""
    return int(
        client.query(
            "SELECT count() FROM system.processes"
            " WHERE position(query, {text:String}) > 0 AND query NOT LIKE '%processes%'",
            parameters={"text": text},
        ).first_row[0]
    )


def test_an_answer_costs_the_engine_one_statement(ask: Ask) -> None:
    """The request's own: it finds its connection set up, and nobody is taken for having left at the answer's end."""

    def count_statements() -> int:
        return int(ask(query="SELECT value FROM system.events WHERE event = 'Query'").read())

    before = count_statements()
    for _ in range(20):
        assert ask(query="SELECT 1").read() == b"1\n"

    assert count_statements() - before == 21


def test_ping_and_root_say_ok(ask: Ask) -> None:
    """What load balancers and people ask first is answered as ClickHouse does."""
    assert ask(method="GET", path="/ping").read() == b"Ok.\n"
    assert ask(method="GET").read() == b"Ok.\n"


def test_answer_says_format_time_zone_and_id(ask: Ask) -> None:
    """The headers the driver reads are there."""
    response = ask(b"SELECT 1 AS a", query_id="mine", default_format="JSONEachRow", wait_end_of_query="1")

    assert json.loads(response.read()) == {"a": 1}
    assert response.headers["X-ClickHouse-Format"] == "JSONEachRow"
    assert response.headers["X-ClickHouse-Query-Id"] == "mine"
    assert response.headers["X-ClickHouse-Timezone"]
    assert response.headers["X-ClickHouse-Server-Display-Name"]
    assert "written_rows" in json.loads(response.headers["X-ClickHouse-Summary"])


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [("query_id", "mine €", 200), ("query_id", "a\r\nb: c", 200), ("session_timezone", "Europe/€", 400)],
)
def test_what_no_head_can_hold_is_answered(ask: Ask, name: str, value: str, status: int) -> None:
    """An id or a time zone of any characters gets ClickHouse's own answer, told without a line of the head's own."""
    response = ask(b"SELECT 1", **{name: value})

    assert (response.status, response.headers["b"]) == (status, None)
    assert (response.read() == b"1\n") == (status == 200)
    assert ("%" in response.headers["X-ClickHouse-Query-Id"]) == (name == "query_id")
    assert ("X-ClickHouse-Exception-Code" in response.headers) == (status != 200)


def test_query_in_the_url_is_continued_by_the_body(ask: Ask) -> None:
    """As on a server, the body follows the query of the URL on a new line."""
    assert ask(b"+ 2", query="SELECT 1").read() == b"3\n"
    assert ask(method="GET", query="SELECT 5").read() == b"5\n"


@pytest.mark.parametrize(
    ("parameters", "code", "status"),
    [
        ({"query": "SELECT 1", "no_such_setting": "1"}, "115", 404),
        ({"query": "SELECT 1", "bad name": "1"}, "115", 404),
        ({"query": "SELECT 1", "compress": "1"}, "48", 501),
        ({"query": "SELECT 1", "session_id": "none", "session_check": "1"}, "372", 404),
        ({"query": "SELECT 1", "session_id": "s", "session_timeout": "soon"}, "36", 400),
        ({"query": "SELECT {a:UInt8}", "param_a": "x"}, "457", 400),
        ({"query": "SELECT * FROM missing"}, "60", 404),
    ],
)
def test_refusal_is_a_status_a_code_and_a_text(ask: Ask, parameters: dict[str, str], code: str, status: int) -> None:
    """An error has ClickHouse's code in the header and in the text, and its status."""
    response = ask(**parameters)
    text = response.read().decode()

    assert (response.status, response.headers["X-ClickHouse-Exception-Code"]) == (status, code)
    assert text.startswith(f"Code: {code}. DB::")


def test_server_answers_while_queries_run(client: Client, ask: Ask, connect: Connect) -> None:
    """A long query neither blocks `/ping` nor other queries, and is stopped when its client leaves."""
    busy = connect()
    busy.request("POST", "/", body=ENDLESS.encode())
    assert wait_until(lambda: running(client, "sipHash64") == 1, seconds=10)

    started = time.monotonic()
    assert ask(method="GET", path="/ping").read() == b"Ok.\n"
    assert time.monotonic() - started < 1
    busy.close()
    assert wait_until(lambda: running(client, "sipHash64") == 0, seconds=10)


def test_result_nobody_reads_is_stopped(client: Client, connect: Connect) -> None:
    """A client that leaves in the middle of its result does not leave the query behind."""
    reader = connect()
    reader.request("POST", "/", body=b"SELECT repeat('x', 1000) FROM numbers(1000000000)")
    assert reader.getresponse().read(1000)
    assert running(client, "repeat('x'") == 1

    reader.close()
    assert wait_until(lambda: running(client, "repeat('x'") == 0, seconds=10)


def test_a_session_is_free_again_when_its_client_leaves(ask: Ask, connect: Connect) -> None:
    """A client that leaves in the middle of its result does not keep its session locked."""
    reader = connect()
    reader.request("POST", "/?session_id=left", body=b"SELECT repeat('y', 1000) FROM numbers(1000000000)")
    assert reader.getresponse().read(1000)
    while_reading = ask(query="SELECT 1", session_id="left").read()

    reader.close()

    assert b"SESSION_IS_LOCKED" in while_reading
    assert wait_until(lambda: ask(query="SELECT 1", session_id="left").read() == b"1\n", seconds=10)


def test_insert_that_is_killed_is_not_reported_as_done(client: Client, ask: Ask) -> None:
    """KILL QUERY makes the insert fail for its client."""
    client.command("CREATE TABLE slow (a UInt64) ENGINE = MergeTree ORDER BY a")
    answers: list[tuple[int, str | None]] = []

    def insert() -> None:
        response = ask(
            b"1\n2\n",
            query="INSERT INTO slow SELECT a + sleepEachRow(3) FROM input('a UInt64') FORMAT TSV",
            function_sleep_max_microseconds_per_block="60000000",
        )
        answers.append((response.status, response.headers["X-ClickHouse-Exception-Code"]))

    thread = threading.Thread(target=insert)
    thread.start()
    assert wait_until(lambda: running(client, "sleepEachRow") == 1, seconds=10)
    client.command("KILL QUERY WHERE position(query, 'sleepEachRow') > 0 AND query NOT LIKE 'KILL%' ASYNC")
    thread.join(20)

    assert answers == [(500, "394")]
    assert client.command("SELECT count() FROM slow") == 0


def test_insert_that_runs_out_of_time_is_not_reported_as_done(client: Client, ask: Ask) -> None:
    """`max_execution_time` makes an insert fail and store nothing."""
    client.command("CREATE TABLE timed (a UInt64) ENGINE = MergeTree ORDER BY a")
    body = b"\n".join(b"%d" % number for number in range(1_000_000))
    response = ask(body, query="INSERT INTO timed FORMAT TSV", max_execution_time="0.001")

    assert (response.status, response.headers["X-ClickHouse-Exception-Code"]) == (408, "159")
    assert client.command("SELECT count() FROM timed") == 0


def test_body_that_breaks_off_stores_nothing(client: Client, connect: Connect) -> None:
    """A client that dies while it sends leaves no rows and no file."""
    client.command("CREATE TABLE broken (a UInt64) ENGINE = MergeTree ORDER BY a")
    sender = connect()
    sender.putrequest("POST", "/?" + urlencode({"query": "INSERT INTO broken FORMAT TSV"}))
    sender.putheader("Content-Length", "1000")
    sender.endheaders(b"1\n2\n3\n")
    sender.close()
    client.command("INSERT INTO broken VALUES (9)")

    assert client.query("SELECT a FROM broken").result_rows == [(9,)]


@pytest.mark.parametrize("size", [3, 70_000, 3_000_000])
def test_a_body_in_pieces_is_stored_whole(client: Client, ask: Ask, connect: Connect, size: int) -> None:
    """Pieces of a few bytes, of more than the server reads ahead and of several reads are put together in order."""
    client.command("CREATE OR REPLACE TABLE pieces (a String) ENGINE = MergeTree ORDER BY a")
    sent = random.Random(size).randbytes(max(10_000, 2 * size))
    sender = connect()
    query = urlencode({"query": "INSERT INTO pieces FORMAT RawBLOB"})
    pieces = (sent[start : start + size] for start in range(0, len(sent), size))
    sender.request("POST", f"/?{query}", body=pieces, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})

    assert sender.getresponse().status == 200
    assert ask(query="SELECT lower(hex(SHA256(a))) FROM pieces FORMAT TSV").read().decode().strip() == (
        hashlib.sha256(sent).hexdigest()
    )


def test_uploads_are_removed(client: Client, home: Path) -> None:
    """The file a body was received in does not outlive its request."""
    client.command("CREATE TABLE received (a UInt64) ENGINE = MergeTree ORDER BY a")
    client.raw_insert("received", insert_block=b"1\n", fmt="TSV")

    assert wait_until(lambda: list((home / "uploads").iterdir()) == [], seconds=5)


def test_session_serves_one_request_at_a_time(ask: Ask, client: Client, connect: Connect) -> None:
    """A second request in a busy session is refused, as ClickHouse does."""
    busy = connect()
    busy.request("POST", "/?session_id=one", body=ENDLESS.encode())
    assert wait_until(lambda: running(client, "sipHash64") == 1, seconds=10)

    response = ask(b"SELECT 1", session_id="one")
    assert response.headers["X-ClickHouse-Exception-Code"] == "373"
    busy.close()
    assert wait_until(lambda: ask(b"SELECT 1", session_id="one").status == 200, seconds=10)


def test_broken_result_has_no_end(ask: Ask) -> None:
    """A client that knows nothing of ClickHouse's error tags still sees that the result is not complete."""
    response = ask(b"SELECT throwIf(number = 1500000) FROM numbers(2000000)", max_threads="1")

    assert response.status == 200
    with pytest.raises(http.client.IncompleteRead):
        response.read()
