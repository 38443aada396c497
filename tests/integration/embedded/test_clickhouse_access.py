"""The embedded ClickHouse serves whoever has its token, and can be made to do no more than its data needs."""

import http.client
import http.server
import os
import stat
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import clickhouse_connect
import psutil
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from outbox_pipeline.embedded.clickhouse import INHERITED, running_clickhouse, start_clickhouse, write_state
from outbox_pipeline.embedded.confinement import confinement
from outbox_pipeline.embedded.engines import embedded_engines, running_engines
from outbox_pipeline.embedded.homes import Home, locked
from outbox_pipeline.embedded.statements import refused_part
from tests.fixtures.contacts import Contacts
from tests.integration.embedded.conftest import Ask, Connect

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

#: Makes a data directory as versions without a configuration did, with a row in it.
OLD_DATA = """
import sys, chdb
engine = chdb.connect(sys.argv[1])
engine.query("CREATE TABLE kept (a Int8) ENGINE = MergeTree ORDER BY a")
engine.query("INSERT INTO kept VALUES (7)")
engine.close()
"""


@pytest.fixture
def bare_url(clickhouse_url: str) -> str:
    """Return where the server is, without user and password."""
    return f"http://127.0.0.1:{urlsplit(clickhouse_url).port}"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return a file that the server's account may read and its clients may not."""
    file = tmp_path / "secret.txt"
    file.write_text("do-not-show")
    return file


def token_of(url: str) -> str:
    """Return the password of a URL."""
    return urlsplit(url).password or ""


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


FILES = [
    "SELECT file('{file}')",
    "SELECT `file`('{file}')",
    "SELECT \"file\" ( '{file}' )",
    "SELECT /* file */ file/**/('{file}')",
    "SELECT * FROM file('{file}', 'LineAsString')",
    "DESCRIBE TABLE file('{file}', 'LineAsString')",
    "SELECT * FROM fileCluster('default', '{file}', 'LineAsString')",
    "SELECT * FROM (SELECT * FROM file('{file}', 'LineAsString'))",
    "SELECT 1 WHERE 'a' IN (SELECT * FROM file('{file}', 'LineAsString'))",
    "SELECT * FROM `{file}`",
    "SELECT * FROM _start.`{file}`",
    "SELECT * FROM filesystem('{folder}')",
    "SELECT * FROM sqlite('{file}', 't')",
    "SELECT * FROM executable('x', 'TSV', 'a Int8')",
    "SELECT * FROM eval('SELECT 1')",
    "SELECT * FROM eval('SELECT 1') SETTINGS allow_experimental_eval_table_function = 1",
    "SELECT * FROM python(query)",
    "SELECT * FROM icebergLocal('{folder}')",
    "SELECT * FROM deltaLakeLocal('{folder}')",
    "SELECT * FROM _outbox.upload(id='{file}', format='LineAsString', structure='a String')",
    "INSERT INTO kept FROM INFILE '{file}' FORMAT LineAsString",
    "INSERT INTO kept FROM INFILE '{file}' COMPRESSION 'none' FORMAT LineAsString\n",
    "INSERT INTO kept SELECT * FROM file('{file}', 'LineAsString')",
    "INSERT INTO kept SELECT a || file('{file}') FROM input('a String') FORMAT TSV\nx\n",
    "INSERT INTO kept SELECT a FROM input('a String') FROM INFILE '{file}' FORMAT TSV\nx\n",
    "CREATE TABLE copy ENGINE = Memory AS SELECT * FROM file('{file}', 'LineAsString')",
    "CREATE TABLE copy (a String DEFAULT file('{file}')) ENGINE = Memory",
    "CREATE TABLE copy (a String) ENGINE = File(LineAsString, '{file}')",
    "CREATE TABLE copy (a String) ENGINE = FileLog('{folder}/', 'LineAsString')",
    "CREATE TABLE copy (a String) ENGINE = `FileLog`('{folder}/', 'LineAsString')",
    "CREATE TABLE copy (a String) ENGINE FileLog('{folder}/', 'LineAsString')",
    "CREATE TABLE copy (a String) ENGINE = Executable('x', 'TSV')",
    "CREATE TABLE copy (a String) ENGINE = SQLite('{file}', 't')",
    "CREATE VIEW copy AS SELECT * FROM file('{file}', 'LineAsString')",
    "CREATE VIEW copy SQL SECURITY NONE AS SELECT * FROM file('{file}', 'LineAsString')",
    "CREATE VIEW copy AS SELECT file('{file}')",
    "CREATE DICTIONARY copy (a UInt8) PRIMARY KEY a SOURCE(FILE(PATH '{file}' FORMAT 'TSV')) LAYOUT(FLAT) LIFETIME(0)",
    "CREATE DATABASE copy ENGINE = Filesystem('{folder}')",
    "CREATE DATABASE copy ENGINE = SQLite('{file}')",
    "CREATE FUNCTION copy AS () -> file('{file}')",
    "ATTACH TABLE copy FROM '{folder}' (a Int8) ENGINE = MergeTree ORDER BY a",
    "CREATE TABLE a ENGINE = Memory AS SELECT 1 PARALLEL WITH ATTACH TABLE copy FROM '{folder}' (a Int8) ENGINE = Log",
    "BACKUP TABLE kept TO File('{folder}/backup')",
    "RESTORE TABLE kept FROM File('{folder}/backup')",
    "SELECT 1 AS a FORMAT Template SETTINGS format_template_row = '{file}'",
    "SELECT 1 AS a FORMAT Template SETTINGS format_template_resultset = '{file}'",
    "SELECT 1 AS a FORMAT Protobuf SETTINGS format_schema = '{file}:M'",
    "SELECT file\u00a0('{file}')",
    "SELECT file\ufeff('{file}')",
    "SELECT `fi\\x6ce`('{file}')",
    "SELECT \u201cfile\u201d('{file}')",
    "CREATE TABLE copy (a String) ENGINE =\u00a0FileLog('{folder}/', 'LineAsString')",
    "INSERT INTO kept FORMAT Values (file('{file}'))",
    "INSERT INTO kept FORMAT values\n(file('{file}'))",
    "INSERT INTO kept SELECT a FROM input('a String') FORMAT Values (file('{file}'))",
    "SELECT 1 SETTINGS additional_result_filter = 'file(\\'{file}\\') = \\'x\\''",
    "SET additional_result_filter = 'file(\\'{file}\\') = \\'x\\''",
    "SET format_schema = '{file}:M'",
    "SET dialect = 'prql'",
    "SET allow_python_table_function = 1",
]

WRITES = [
    "SELECT 1 INTO OUTFILE '{out}'",
    "SELECT 1 into/**/outfile '{out}' TRUNCATE FORMAT CSV",
    "(SELECT 1) INTO OUTFILE '{out}'",
    "SELECT 1 UNION ALL SELECT 2 INTO OUTFILE '{out}'",
    "EXPLAIN SELECT 1 INTO OUTFILE '{out}'",
    "SHOW TABLES INTO OUTFILE '{out}'",
    "INSERT INTO kept VALUES ('a'); SELECT 1 INTO OUTFILE '{out}'",
    "SELECT 1 AS a$x$ INTO OUTFILE '{out}' -- $x$",
    "INSERT INTO FUNCTION file('{out}', 'TSV', 'a Int8') VALUES (1)",
    "INSERT INTO TABLE FUNCTION file('{out}', 'TSV', 'a Int8') SELECT 1",
    "CREATE TABLE copy (a Int8) ENGINE = MergeTree ORDER BY a SETTINGS disk = disk(type = 'local', path = '{out}/')",
    "CREATE TABLE copy (a Int8) ENGINE = MergeTree ORDER BY a"
    " SETTINGS disk = disk(type = 'local_blob_storage', path = '{out}/')",
    "CREATE TABLE copy (a Int8) ENGINE = EmbeddedRocksDB(0, '{out}') PRIMARY KEY a",
    "SET input_format_record_errors_file_path = '{out}'",
]

OTHER_SERVERS = [
    *(
        f"SELECT * FROM {source}"
        for source in (
            "url('http://{address}/', 'LineAsString')",
            "urlCluster('default', 'http://{address}/', 'LineAsString')",
            "s3('http://{address}/bucket/key')",
            "gcs('http://{address}/bucket/key')",
            "hdfs('hdfs://{address}/x')",
            "azureBlobStorage('http://{address}/', 'c', 'x', 'a', 'aw==')",
            "iceberg('http://{address}/bucket/x')",
            "deltaLake('http://{address}/bucket/x')",
            "hudi('http://{address}/bucket/x')",
            "remote('{address}', 'system', 'one')",
            "remoteSecure('{address}', 'system', 'one')",
            "postgresql('{address}', 'd', 't', 'u', 'p')",
            "mysql('{address}', 'd', 't', 'u', 'p')",
            "mongodb('{address}', 'd', 't', 'u', 'p', 'a Int8')",
            "redis('{address}', 'a', 'a Int8')",
            "odbc('DSN=x', 'd', 't')",
            "jdbc('x', 'd', 't')",
        )
    ),
    *(
        f"CREATE TABLE copy (a Int8) ENGINE = {engine}"
        for engine in (
            "URL('http://{address}/', 'TSV')",
            "S3('http://{address}/bucket/key', 'TSV')",
            "PostgreSQL('{address}', 'd', 't', 'u', 'p')",
            "MySQL('{address}', 'd', 't', 'u', 'p')",
            "MongoDB('{address}', 'd', 't', 'u', 'p')",
            "Kafka('{address}', 't', 'g', 'TSV')",
            "Distributed('default', 'default', 't')",
            "MergeTree ORDER BY a SETTINGS disk = disk(type = 'web', endpoint = 'http://{address}/')",
        )
    ),
    "CREATE DATABASE copy ENGINE = PostgreSQL('{address}', 'd', 'u', 'p')",
    "CREATE DATABASE copy ENGINE = MySQL('{address}', 'd', 'u', 'p')",
    "CREATE DATABASE copy ENGINE = DataLakeCatalog('http://{address}/') SETTINGS warehouse = 'x'",
    "SELECT * FROM format(AvroConfluent, 'a Int8', 'x') SETTINGS format_avro_schema_registry_url = 'http://{address}/'",
]

MANAGEMENT = [
    "CREATE USER other",
    "ALTER USER default IDENTIFIED BY 'x'",
    "GRANT READ ON FILE TO default",
    "CREATE ROLE other",
    "CREATE NAMED COLLECTION other AS a = 1",
    "SYSTEM SHUTDOWN",
    "SYSTEM RELOAD CONFIG",
    "DROP DATABASE default",
    "DROP TABLE _outbox.upload",
    "CREATE TABLE _outbox.mine (a Int8) ENGINE = Memory",
    "EXECUTE AS default SELECT 1",
]


@pytest.mark.parametrize("statement", [*FILES, *WRITES, *OTHER_SERVERS, *MANAGEMENT])
def test_engine_reaches_nothing_but_its_data(
    ask: Ask, client: Client, contacts: Contacts, secret: Path, tmp_path: Path, statement: str
) -> None:
    """Whoever has the token has the data, and neither the owner's files nor what the machine reaches."""
    client.command("CREATE TABLE kept (a String) ENGINE = MergeTree ORDER BY a")
    names = {"file": secret, "folder": tmp_path, "out": tmp_path / "out", "address": contacts.address}
    for name, value in names.items():
        statement = statement.replace(f"{{{name}}}", str(value))
    answer = ask(statement.encode())
    text = answer.read().decode()

    assert answer.status != 200, text
    assert "do-not-show" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.txt"]
    assert secret.read_text() == "do-not-show"
    assert client.query("SELECT * FROM kept").result_rows == []
    assert contacts.count == 0


needs_landlock = pytest.mark.skipif(confinement([]) is None, reason="this kernel cannot shut threads off (Landlock)")


@pytest.fixture(scope="module")
def open_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server behind the first wall only, as on a system without Landlock."""
    home = Home(tmp_path_factory.mktemp("open") / "home")
    with embedded_engines(home.path, postgres=False, clickhouse=False):
        with locked(home):
            url = start_clickhouse(home, more_grants=["SHOW ON *.*"]).url
        yield url


@pytest.mark.parametrize("statement", [statement for statement in FILES if "file" in statement.lower()])
def test_file_is_refused_without_the_kernel(open_url: str, secret: Path, tmp_path: Path, statement: str) -> None:
    """By grants and by the text alone no spelling of a call reads a file."""
    for name, value in {"file": secret, "folder": tmp_path}.items():
        statement = statement.replace(f"{{{name}}}", str(value))
    client = clickhouse_connect.get_client(dsn=open_url, autogenerate_session_id=False)
    client.command("CREATE TABLE IF NOT EXISTS kept (a String) ENGINE = Memory")

    with pytest.raises(DatabaseError):
        client.raw_query(statement)
    assert client.query("SELECT * FROM kept").result_rows == []


@needs_landlock
def test_every_thread_of_the_engine_is_shut_off(client: Client, home: Path) -> None:
    """Those that read, write, merge and wait; the two that are free move bytes and watch who uses the home."""
    client.command("CREATE TABLE busy (a UInt64) ENGINE = MergeTree ORDER BY a")
    for _ in range(3):
        client.command("INSERT INTO busy SELECT number FROM numbers(100000)")
    client.command("OPTIMIZE TABLE busy FINAL")
    handle = running_clickhouse(Home(home))
    assert handle is not None
    threads = [file.read_text() for file in Path(f"/proc/{handle.pid}/task").glob("*/status")]
    free = [status for status in threads if "NoNewPrivs:\t0" in status]

    assert len(threads) > 10
    assert [status.split()[1] for status in free] == ["python"] * len(free)
    assert len(free) <= 2


@needs_landlock
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT arrayMap(file, ['{file}'])",
        "SELECT * APPLY file FROM (SELECT '{file}' AS x)",
        "SELECT * FROM format(JSONEachRow, 'a String, b String DEFAULT file(\\'{file}\\')', '{{\"a\": \"x\"}}')",
        "SELECT arrayMap(file, ['/etc/passwd'])",
        "SELECT arrayMap(file, ['{home}/lock'])",
        "SELECT arrayMap(file, ['{home}/clickhouse.json'])",
        "SELECT arrayMap(file, ['/proc/1/environ'])",
    ],
)
def test_kernel_keeps_the_engine_from_what_no_grant_is_asked_for(
    ask: Ask, secret: Path, home: Path, clickhouse_url: str, statement: str
) -> None:
    """Ways to a file that neither grants nor the text show end at the kernel."""
    answer = ask(statement.format(file=secret, home=home).encode())
    text = answer.read().decode()

    assert answer.status != 200, text
    assert "do-not-show" not in text
    assert token_of(clickhouse_url) not in text
    assert "ermission denied" in text


def test_wanted_rights_are_there(client: Client) -> None:
    """Tables, views, materialized views, temporary tables and databases are the client's to make, use and drop."""
    for statement in (
        "CREATE TABLE a (x Int8) ENGINE = ReplacingMergeTree ORDER BY x",
        "CREATE VIEW v AS SELECT x + 1 AS y FROM a",
        "CREATE MATERIALIZED VIEW m ENGINE = MergeTree ORDER BY x AS SELECT x FROM a",
        "INSERT INTO a VALUES (1), (2)",
        "CREATE TABLE b AS a",
        "CREATE TABLE c ENGINE = Memory AS SELECT * FROM a",
        "CREATE OR REPLACE TABLE probe AS a ENGINE = Null",
        "ALTER TABLE a ADD COLUMN file String DEFAULT 'f'",
        "ALTER TABLE a UPDATE file = 'g' WHERE 1 SETTINGS mutations_sync = 2",
        "DELETE FROM a WHERE x = 1",
        "OPTIMIZE TABLE a FINAL",
        "RENAME TABLE b TO d",
        "EXCHANGE TABLES a AND d",
        "DETACH TABLE c",
        "CREATE DATABASE mine",
        "DROP DATABASE mine",
        "KILL QUERY WHERE 0",
    ):
        client.command(statement)

    assert client.query("SELECT x, file FROM d").result_rows == [(2, "g")]
    assert client.query("SELECT y FROM v").result_rows == []
    assert client.query("SELECT query FROM system.processes").row_count == 1


def test_rights_beside_the_usual_ones_are_asked_for_at_the_start(tmp_path: Path, secret: Path) -> None:
    """A server that is started with one more grant has it, and no other."""
    home = Home(tmp_path / "home")
    with embedded_engines(home.path, postgres=False, clickhouse=False):
        with locked(home):
            start_clickhouse(home, more_grants=["READ ON FILE"])
        client = clickhouse_connect.get_client(dsn=str(running_engines(home.path).clickhouse))
        # The function is refused by its name, whoever may read files.
        with pytest.raises(DatabaseError, match="is refused"):
            client.command(f"SELECT * FROM file('{secret}', 'LineAsString')")
        assert client.command(f"SELECT count() FROM filesystem('{tmp_path}')") >= 1
        with pytest.raises(DatabaseError, match="READ ON URL"):
            client.command("SELECT * FROM url('http://127.0.0.1:9/', 'LineAsString')")


def test_data_of_before_is_kept(tmp_path: Path) -> None:
    """A home whose engine had no configuration is served with its tables, at this start and the next."""
    home = Home(tmp_path)
    home.create()
    subprocess.run([sys.executable, "-c", OLD_DATA, str(home.clickhouse_data)], check=True, cwd=tmp_path, timeout=60)

    for added in (1, 2):
        with embedded_engines(tmp_path, postgres=False) as urls:
            client = clickhouse_connect.get_client(dsn=str(urls.clickhouse))
            client.command(f"INSERT INTO kept VALUES ({added})")
            rows = client.query("SELECT a FROM kept ORDER BY a").result_rows
            assert rows == [(number,) for number in range(1, added + 1)] + [(7,)]


def test_configuration_of_the_working_folder_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project's own config.xml, and a module that is named like the engine, stop no start and change nothing."""
    project, home = tmp_path / "project", Home(tmp_path / "home")
    project.mkdir()
    home.create()
    (home.path / "chdb.py").write_text("raise SystemExit('a module of the home was loaded')")
    (project / "config.xml").write_text("<clickhouse><default_database>other</default_database></clickhouse>")
    (project / "chdb.py").write_text("raise SystemExit('a module of the working folder was loaded')")
    monkeypatch.chdir(project)
    with embedded_engines(home.path, postgres=False) as urls:
        client = clickhouse_connect.get_client(dsn=str(urls.clickhouse))

        assert client.command("SELECT currentDatabase()") == "default"


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1 {out}",
        "SELECT 1 /* a /* b */ c */ {out}",
        "SELECT 1 /* {out} */",
        "SELECT 1 /* ' /* */ ' */ {out} -- '",
        "SELECT 1 // ' \n {out} -- '",
        "SELECT 1 // {out}",
        "SELECT 1 -- {out}",
        "SELECT 1 #! {out}",
        "SELECT '{quoted}'",
        "SELECT ‘a'’ {out} -- '",
        "SELECT “dummy” FROM system.one {out} -- “",
        "SELECT 1 AS a$x$ {out} -- $x$",
        "SELECT $x$ {out} $x$",
        "SELECT $$ {out} $$",
        "SELECT $1$ {out} $1$",
        "SELECT 1 AS `outfile`",
        "SELECT x'41' {out}",
        'SELECT "a""b" {out} -- "',
        "SELECT 'a\\\\' {out} -- '",
        "SELECT 1\u00a0{out}",
        "SELECT −1 {out}",
    ],
)
def test_scanner_and_engine_agree_on_what_is_a_clause(client: Client, text: str) -> None:
    """Where ClickHouse's parser finds INTO OUTFILE, behind whatever comment or string, the statement is refused."""
    statement = text.replace("{out}", "INTO OUTFILE 'f'").replace("{quoted}", "INTO OUTFILE")
    parsed = client.query("SELECT formatQuery({text:String})", parameters={"text": statement}).first_row[0]

    assert ("\nINTO OUTFILE" in parsed) == (refused_part(statement.encode()) == "OUTFILE")
