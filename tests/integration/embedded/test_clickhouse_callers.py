"""The embedded ClickHouse serves whoever shows its token, and no page of a browser."""

import http.client
import http.server
import os
import stat
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import clickhouse_connect
import psutil
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from outbox_pipeline.embedded.clickhouse import INHERITED, running_clickhouse, write_state
from outbox_pipeline.embedded.clickhouse_server import main
from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.embedded.homes import Home
from tests.fixtures.plain_http import Ask, Connect, token_of

pytestmark = pytest.mark.embedded_only


EVIL = b"CREATE TABLE evil (a UInt8) ENGINE = Memory"


#: What Chromium sends with the request that follows a redirect of a link in a mail.
FOLLOWED_LINK = {
    "Sec-Fetch-Site": "none",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-User": "?1",
    "Sec-Fetch-Dest": "document",
    "Upgrade-Insecure-Requests": "1",
}


def basic(credentials: str) -> dict[str, str]:
    """Return the header of HTTP's basic authentication."""
    return {"Authorization": f"Basic {b64encode(credentials.encode()).decode()}"}


def test_token_is_long_and_random(clickhouse_url: str, tmp_path: Path) -> None:
    """Nobody guesses a token, and two homes do not share one."""
    with embedded_engines(tmp_path, postgres=False) as urls:
        assert urls.clickhouse is not None
        other = token_of(urls.clickhouse)

    assert len(token_of(clickhouse_url)) >= 43
    assert other != token_of(clickhouse_url)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("outbox:"),
        basic("outbox:wrong"),
        basic("default:"),
        {"Authorization": "Basic not-base64!"},
        {"Authorization": "Basic"},
        {"Authorization": "Bearer outbox"},
        {"X-ClickHouse-User": "outbox"},
        {"X-ClickHouse-User": "outbox", "X-ClickHouse-Key": "wrong"},
    ],
)
def test_requests_without_the_token_are_refused(
    connect: Connect, bare_url: str, client: Client, headers: dict[str, str]
) -> None:
    """Code and status are ClickHouse's, nothing was done, and the text says where the right URL is."""
    connection = connect(bare_url)
    connection.request("POST", "/", body=EVIL, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()

    assert (answer.status, answer.headers["X-ClickHouse-Exception-Code"]) == (403, "516")
    assert "(AUTHENTICATION_FAILED)" in text
    assert "outbox env" in text
    assert client.command("EXISTS evil") == 0


def test_other_user_with_the_token_is_refused(connect: Connect, bare_url: str, clickhouse_url: str) -> None:
    """The token belongs to one user name."""
    connection = connect(bare_url)
    connection.request("POST", "/", body=EVIL, headers=basic(f"default:{token_of(clickhouse_url)}"))

    assert connection.getresponse().status == 403


def test_token_in_the_address_is_not_taken(connect: Connect, bare_url: str, clickhouse_url: str) -> None:
    """Addresses are kept in histories and logs."""
    connection = connect(bare_url)
    parameters = urlencode({"query": "SELECT 1", "user": "outbox", "password": token_of(clickhouse_url)})
    connection.request("POST", f"/?{parameters}")

    assert connection.getresponse().status == 403


@pytest.mark.parametrize("method", ["Authorization", "X-ClickHouse-Key"])
def test_token_is_taken_from_both_headers(connect: Connect, bare_url: str, clickhouse_url: str, method: str) -> None:
    """Clients show it as HTTP's basic authentication or in ClickHouse's own headers."""
    token = token_of(clickhouse_url)
    own = {"X-ClickHouse-User": "outbox", "X-ClickHouse-Key": token}
    connection = connect(bare_url)
    connection.request(
        "POST", "/", body=b"SELECT 7", headers=own if method == "X-ClickHouse-Key" else basic(f"outbox:{token}")
    )

    assert connection.getresponse().read() == b"7\n"


def test_ping_needs_no_token(connect: Connect, bare_url: str) -> None:
    """Whether the server is up is no secret."""
    for path in ("/ping", "/"):
        connection = connect(bare_url)
        connection.request("GET", path)
        assert connection.getresponse().read() == b"Ok.\n"


def test_the_server_of_a_home_stays_on_loopback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `outbox up` starts listens for this machine alone; only a server without a home may be told where."""
    with pytest.raises(SystemExit):
        main(["--path", str(tmp_path / "data"), "--home", str(tmp_path), "--host", "0.0.0.0"])

    assert "listens on loopback only" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--host" not in capsys.readouterr().out


def test_stranger_is_answered_before_the_body(connect: Connect, bare_url: str) -> None:
    """A request without the token is refused by its head, and the connection ends there."""
    connection = connect(bare_url)
    connection.putrequest("POST", "/")
    connection.putheader("Content-Length", "1000000000")
    connection.endheaders()
    answer = connection.getresponse()

    assert answer.status == 403
    assert answer.headers["Connection"] == "close"


def test_wrong_password_is_one_clear_sentence(bare_url: str) -> None:
    """A client with a URL of an earlier server of the home learns what to do."""
    with pytest.raises(DatabaseError, match="'outbox env' shows the URL that does") as caught:
        clickhouse_connect.get_client(dsn=bare_url.replace("//", "//outbox:stale@"))
    assert caught.value.code == 516


def test_token_is_in_a_private_file_and_on_no_command_line(home: Path, clickhouse_url: str) -> None:
    """Another account of the machine finds it neither in the home nor in `ps`."""
    handle = running_clickhouse(Home(home))
    assert handle is not None

    assert stat.S_IMODE(Home(home).clickhouse_state.stat().st_mode) == 0o600
    assert token_of(clickhouse_url) not in " ".join(psutil.Process(handle.pid).cmdline())
    assert token_of(clickhouse_url) not in repr(handle)


def test_state_is_private_whatever_lies_there(tmp_path: Path) -> None:
    """Neither the umask nor the draft of a server that was killed opens the file for others."""
    home = Home(tmp_path)
    home.clickhouse_state.with_suffix(".new").touch(mode=0o666)
    before = os.umask(0)
    try:
        write_state(home, port=1, token="t")
    finally:
        os.umask(before)

    assert stat.S_IMODE(home.clickhouse_state.stat().st_mode) == 0o600


def test_server_of_before_is_replaced_by_one_with_a_token(tmp_path: Path) -> None:
    """A server whose state has no token asks for none: it is ended, and the home's next one has a token that stays."""
    with embedded_engines(tmp_path, postgres=False):
        home = Home(tmp_path)
        before = running_clickhouse(home)
        assert before is not None
        state = home.clickhouse_state.read_text()
        home.clickhouse_state.write_text(state.replace('"token"', '"unknown"'))
        with embedded_engines(tmp_path, postgres=False) as urls:
            assert urls.clickhouse is not None
            assert len(token_of(urls.clickhouse)) >= 43
            assert not before.process.is_alive()
            assert clickhouse_connect.get_client(dsn=urls.clickhouse).command("SELECT 1") == 1


def test_server_has_no_secret_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is a handful of names, whatever that of `outbox up` holds."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-show")
    monkeypatch.setenv("OUTBOX_ALERT_WEBHOOK_URL", "https://example.com/do-not-show")
    monkeypatch.setenv("TZ", "UTC")
    with embedded_engines(tmp_path, postgres=False):
        handle = running_clickhouse(Home(tmp_path))
        assert handle is not None
        environment = psutil.Process(handle.pid).environ()

    assert "do-not-show" not in " ".join(environment.values())
    assert set(environment) <= {*INHERITED, "PYTHONPATH"}
    assert environment["TZ"] == "UTC"


@pytest.fixture
def redirecting(bare_url: str) -> Iterator[tuple[str, int]]:
    """Serve a link that leads to the embedded server with a statement, as a stranger's page would."""

    class Link(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"{bare_url}/?{urlencode({'query': EVIL.decode()})}")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Link)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield "127.0.0.1", server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("has_token", [False, True])
def test_link_that_redirects_does_nothing(
    redirecting: tuple[str, int], connect: Connect, bare_url: str, clickhouse_url: str, client: Client, has_token: bool
) -> None:
    """A link in a mail that leads to the server is refused when a browser follows it, even if it knew the token."""
    link = http.client.HTTPConnection(*redirecting)
    link.request("GET", "/", headers=FOLLOWED_LINK)
    target = link.getresponse().headers["Location"]
    link.close()
    connection = connect(clickhouse_url if has_token else bare_url)
    connection.request("GET", target.removeprefix(bare_url), headers=FOLLOWED_LINK)
    answer = connection.getresponse()

    assert answer.headers["X-ClickHouse-Exception-Code"] == ("497" if has_token else "516")
    assert client.command("EXISTS evil") == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://example.com"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Dest": "image"},
        {"Host": "example.com"},
    ],
)
def test_browsers_are_refused(ask: Ask, client: Client, headers: dict[str, str]) -> None:
    """A page open in the user's browser cannot send queries, not even ones whose answer it could not read."""
    for method in ("GET", "POST"):
        assert ask(method=method, headers=headers, query=EVIL.decode()).status in (400, 403)
        assert ask(method=method, headers=headers, query="SELECT 1").status in (400, 403)
    assert client.command("EXISTS evil") == 0


@pytest.mark.parametrize(
    "statement",
    [
        EVIL.decode(),
        "CREATE TEMPORARY TABLE evil (a UInt8)",
        "INSERT INTO kept VALUES (2)",
        "INSERT INTO FUNCTION null('a UInt8') SELECT 1",
        "TRUNCATE TABLE kept",
        "ALTER TABLE kept DELETE WHERE 1",
        "DROP TABLE kept",
        "SET max_threads = 1",
        "KILL QUERY WHERE 1 ASYNC",
        "SYSTEM FLUSH LOGS",
        "SELECT 1; DROP TABLE kept",
    ],
)
@pytest.mark.parametrize("session", [{}, {"session_id": "reader"}])
def test_get_only_reads(ask: Ask, client: Client, statement: str, session: dict[str, str]) -> None:
    """As in ClickHouse, what changes anything needs a POST, in a session too, and `readonly` is not the client's."""
    client.command("CREATE TABLE kept (a UInt8) ENGINE = MergeTree ORDER BY a")
    client.command("INSERT INTO kept VALUES (1)")
    answer = ask(method="GET", query=statement, readonly="0", **session)

    assert answer.headers["X-ClickHouse-Exception-Code"] in ("164", "62")
    assert client.query("SELECT a FROM kept").result_rows == [(1,)]
    assert client.command("EXISTS evil") == 0


def test_head_only_reads(ask: Ask, client: Client) -> None:
    """It is GET without the answer's body."""
    assert ask(method="HEAD", query=EVIL.decode()).headers["X-ClickHouse-Exception-Code"] == "164"
    assert client.command("EXISTS evil") == 0


@pytest.mark.parametrize(
    "statement", ["SELECT 1", "(SELECT 1)", "WITH 1 AS a SELECT a", "SHOW DATABASES", "EXPLAIN SELECT 1", "EXISTS t"]
)
def test_get_reads(ask: Ask, statement: str) -> None:
    """A browser's bookmark is no reason to forbid GET to curl and Grafana."""
    assert ask(method="GET", query=statement, max_threads="1").status == 200


def test_get_of_what_cannot_be_parsed_says_so(ask: Ask) -> None:
    """A typing error is no attempt to write."""
    assert ask(method="GET", query="SELEC 'it''s'").headers["X-ClickHouse-Exception-Code"] == "62"
