"""The engine of the embedded ClickHouse can be made to do no more than its data needs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from outbox_pipeline.embedded.clickhouse import running_clickhouse, start_clickhouse
from outbox_pipeline.embedded.confinement import confinement
from outbox_pipeline.embedded.engines import embedded_engines, running_engines
from outbox_pipeline.embedded.homes import Home, locked
from outbox_pipeline.embedded.statements import refused_part
from tests.fixtures.contacts import Contacts
from tests.fixtures.plain_http import Ask, token_of

pytestmark = pytest.mark.embedded_only

#: Makes a data directory as versions without a configuration did, with a row in it.
OLD_DATA = """
import sys, chdb
engine = chdb.connect(sys.argv[1])
engine.query("CREATE TABLE kept (a Int8) ENGINE = MergeTree ORDER BY a")
engine.query("INSERT INTO kept VALUES (7)")
engine.close()
"""


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
