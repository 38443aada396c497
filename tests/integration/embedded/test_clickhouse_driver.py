"""clickhouse-connect works on the embedded ClickHouse as it does on a server."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import clickhouse_connect
import lz4.frame
import pandas as pd
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError

EVENTS = "(id UUID, at DateTime64(6, 'UTC'), name String, number UInt64) ENGINE = MergeTree ORDER BY number"


@pytest.fixture
def table(client: Client) -> str:
    """Create a table with a deduplication window."""
    client.command(f"CREATE TABLE event {EVENTS} SETTINGS non_replicated_deduplication_window = 100")
    return "event"


def count(client: Client) -> int:
    """Return how many events are stored."""
    return int(client.query("SELECT count() FROM event").first_row[0])


@pytest.mark.parametrize("form", [False, True])
def test_parameters_arrive_as_they_are(clickhouse_url: str, form: bool) -> None:
    """Quotes, line ends, tabs, backslashes and any script survive, in the URL and in a form."""
    values = {
        "id": uuid.uuid4(),
        "at": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "s": "a\tb'\"\n\\ü{x}\r\n ",
    }
    with clickhouse_connect.get_client(dsn=clickhouse_url, form_encode_query_params=form, tz_mode="aware") as client:
        row = client.query("SELECT {id:UUID}, {at:DateTime64(6, 'UTC')}, {s:String}", parameters=values).first_row

    assert row == (values["id"], values["at"], values["s"])


def test_rows_frames_and_arrow_tables_are_inserted(client: Client, table: str) -> None:
    """Every insert of the driver stores its rows and says how many."""
    now = datetime(2026, 1, 2, tzinfo=UTC)
    ids = [uuid.uuid4() for _ in range(3)]
    frame = pd.DataFrame({"id": [ids[1]], "at": [now], "name": ["frame"], "number": [2]})
    arrow = pa.table(
        {
            "id": pa.array([ids[2].bytes], pa.binary(16)),
            "name": ["arrow"],
            "number": pa.array([3], pa.uint64()),
        }
    )

    assert client.insert(table, [[ids[0], now, "it's\t\n", 1]]).written_rows == 1
    assert client.insert_df(table, frame).written_rows == 1
    assert client.insert_arrow(table, arrow).written_rows == 1
    assert client.raw_insert(table, ["name", "number"], b"raw\t4\n", fmt="TSV").written_rows == 1
    rows = client.query("SELECT id, name, number FROM event ORDER BY number").result_rows
    assert rows[:3] == [(ids[0], "it's\t\n", 1), (ids[1], "frame", 2), (ids[2], "arrow", 3)]
    assert rows[3][1:] == ("raw", 4)


@pytest.mark.parametrize("compress", ["lz4", "zstd", "gzip", False])
def test_large_insert_of_many_frames_is_whole(
    clickhouse_url: str, client: Client, table: str, compress: str | bool
) -> None:
    """The driver cuts a large insert into blocks and compresses each by itself; all of them arrive."""
    frame = pd.DataFrame({"number": range(200_000), "name": [f"name {n}" * 5 for n in range(200_000)]})
    with clickhouse_connect.get_client(dsn=clickhouse_url, compress=compress) as other:
        other.insert_df(table, frame)

        total, unique = other.query("SELECT sum(number), uniqExact(name) FROM event").first_row
        assert (total, unique) == (sum(range(200_000)), 200_000)
        assert len(other.query_df("SELECT * FROM event")) == 200_000


def test_raw_insert_reads_every_frame_and_generators(client: Client, table: str) -> None:
    """Frames put together by the caller, and bodies of unknown length, are read to their end."""
    body = b"".join(lz4.frame.compress(b"row\t%d\n" % n * 100) for n in range(5))

    client.raw_insert(table, ["name", "number"], body, fmt="TSV", compression="lz4")
    client.raw_insert(table, ["name", "number"], (b"row\t%d\n" % n for n in range(500)), fmt="TSV")
    assert count(client) == 1000


def test_truncated_body_stores_nothing(client: Client, table: str) -> None:
    """A body cut inside its last frame is refused, the complete frames before included."""
    body = b"".join(lz4.frame.compress(b"row\t%d\n" % n * 100) for n in range(5))

    with pytest.raises(DatabaseError, match="ends inside a frame") as caught:
        client.raw_insert(table, ["name", "number"], body[:-3], fmt="TSV", compression="lz4")
    assert caught.value.code == 33
    assert count(client) == 0


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_statement_and_data_in_one_body(client: Client, table: str, end: bytes) -> None:
    """The driver sends small raw inserts with the statement before the data."""
    client.raw_insert(table, ["name", "number"], b"a\t1\nb\t2" + end, fmt="TabSeparated")

    assert client.query("SELECT name FROM event ORDER BY name").result_columns == [["a", "b"]]


def test_insert_select_from_input_stores_its_rows(client: Client, table: str) -> None:
    """`INSERT … SELECT … FROM input(…)` reads the body, and the count it reports is the count it stored."""
    sink = pa.BufferOutputStream()
    data = pa.table({"name": [f"n{n}" for n in range(1000)], "number": pa.array(range(1000), pa.uint64())})
    with pa.ipc.new_file(sink, data.schema) as writer:
        writer.write_table(data, max_chunksize=100)
    statement = (
        "INSERT INTO event (name, number) SELECT name, number + {add:UInt64} FROM input('name String, number UInt64')"
    )

    client.command(f"{statement} FORMAT Arrow", parameters={"add": 5}, data=sink.getvalue().to_pybytes())
    assert client.query("SELECT count(), min(number) FROM event").first_row == (1000, 5)
    client.raw_query(f"{statement} FORMAT TSV\nx\t1\ny\t2\n", parameters={"add": 0})
    assert count(client) == 1002


def test_insert_select_from_input_fails_by_its_condition(client: Client, table: str) -> None:
    """A `throwIf` in the WHERE refuses the whole insert."""
    statement = (
        "INSERT INTO event (number) SELECT number FROM input('number UInt64') WHERE throwIf(number = 3, 'fenced') = 0"
    )

    with pytest.raises(DatabaseError, match="fenced") as caught:
        client.command(f"{statement} FORMAT TSV", data="1\n2\n3\n4\n")
    assert caught.value.code == 395
    assert count(client) == 0
    client.command(f"{statement} FORMAT TSV", data="1\n2\n")
    assert count(client) == 2


def test_input_without_a_format_is_refused(client: Client, table: str) -> None:
    """What could only be answered with OK and no rows is an error."""
    with pytest.raises(DatabaseError, match="must name the FORMAT"):
        client.command("INSERT INTO event (number) SELECT number FROM input('number UInt64')", data="1\n")


def test_repeated_token_stores_the_rows_once(client: Client, table: str) -> None:
    """The same deduplication token is taken once, and it does not stick to later inserts of the client."""
    for token in ("t1", "t1", "t2"):
        client.insert(table, [["x", 1]], ["name", "number"], settings={"insert_deduplication_token": token})
    assert count(client) == 2

    client.insert(table, [["y", 2]], ["name", "number"])
    client.insert(table, [["z", 3]], ["name", "number"])
    assert count(client) == 4


@pytest.mark.parametrize(
    ("statement", "data", "code"),
    [
        ("SELECT * FROM missing", None, 60),
        ("SELECT missing FROM event", None, 47),
        ("SELEC 1", None, 62),
        ("SELECT 1; SELECT 2", None, 62),
        ("SELECT throwIf(1)", None, 395),
        ("INSERT INTO missing FORMAT TSV", "1\n", 60),
        ("INSERT INTO event (number) FORMAT TSV", "not a number\n", 27),
        ("INSERT INTO document FORMAT JSONEachRow", '{"d": [1]}\n', 117),
    ],
)
def test_errors_carry_their_code(client: Client, table: str, statement: str, data: str | None, code: int) -> None:
    """The driver's exception has ClickHouse's number for what went wrong."""
    client.command("CREATE TABLE document (d JSON) ENGINE = MergeTree ORDER BY tuple()")

    with pytest.raises(DatabaseError) as caught:
        client.command(statement, data=data)
    assert caught.value.code == code


def test_settings_are_those_of_the_request(client: Client) -> None:
    """A setting is in force for its request, is gone for the next, and an unknown one is an error."""
    assert client.command("SELECT getSetting('max_threads')", settings={"max_threads": 7}) == 7
    assert client.command("SELECT getSetting('max_threads')") != 7
    with pytest.raises(DatabaseError) as caught:
        client.command("SET no_such_setting = 1")
    assert caught.value.code == 115


def test_session_keeps_what_it_set(client: Client, clickhouse_url: str) -> None:
    """Temporary tables and SET live as long as the session, and nobody else sees them."""
    client.command("CREATE TEMPORARY TABLE mine (a UInt8)")
    client.command("INSERT INTO mine VALUES (1)")
    client.command("SET max_threads = 3")

    assert client.command("SELECT sum(a), getSetting('max_threads') FROM mine") == ["1", "3"]
    with clickhouse_connect.get_client(dsn=clickhouse_url) as other, pytest.raises(DatabaseError) as caught:
        other.command("SELECT * FROM mine")
    assert caught.value.code == 60


def test_database_of_the_client_is_used(client: Client, clickhouse_url: str) -> None:
    """The database in the URL is where names are looked up; an unknown one is error 81."""
    client.command("CREATE DATABASE IF NOT EXISTS `other-db`")
    with clickhouse_connect.get_client(dsn=clickhouse_url, database="other-db") as other:
        other.command("CREATE TABLE here (a UInt8) ENGINE = Memory")
        assert other.command("SELECT currentDatabase()") == "other-db"
        assert other.command("EXISTS here") == 1
    client.command("DROP DATABASE `other-db`")
    with pytest.raises(DatabaseError) as caught:
        clickhouse_connect.get_client(dsn=clickhouse_url, database="other-db").query("SELECT 1")
    assert caught.value.code == 81


def test_results_come_in_every_shape(client: Client) -> None:
    """Rows, frames, Arrow tables and streams hold the same data; the server's time zone is known."""
    query = "SELECT number, toString(number) AS s, now64(6, 'UTC') AS at FROM numbers(200000)"

    assert len(client.query(query).result_rows) == 200_000
    assert client.query_df(query)["number"].sum() == sum(range(200_000))
    assert client.query_arrow(query).num_rows == 200_000
    with client.query_row_block_stream(query) as stream:
        assert sum(len(block) for block in stream) == 200_000
    with client.query_arrow_stream(query) as stream:
        assert sum(batch.num_rows for batch in stream) == 200_000


def test_empty_result_has_its_columns(client: Client) -> None:
    """A query without rows still tells names and types."""
    result = client.query("SELECT 1::UInt64 AS a, 'x' AS b WHERE 0")

    assert result.column_names == ("a", "b")
    assert [column.name for column in result.column_types] == ["UInt64", "String"]
    assert client.query_arrow("SELECT 1 AS a WHERE 0").column_names == ["a"]
    assert client.query("SHOW TABLES").result_rows == []


def test_failure_in_the_middle_of_a_stream_is_noticed(client: Client) -> None:
    """A stream that breaks raises; it never ends as if it were complete."""
    query = "SELECT throwIf(number = 1500000) FROM numbers(2000000) SETTINGS max_threads = 1"

    with pytest.raises(StreamFailureError, match="throwIf"), client.query_row_block_stream(query) as stream:
        for _ in stream:
            pass


def test_many_clients_work_at_once(clickhouse_url: str, client: Client, table: str) -> None:
    """Clients in parallel neither wait for ever nor see one another's settings."""

    def work(number: int) -> int:
        with clickhouse_connect.get_client(dsn=clickhouse_url) as other:
            for turn in range(5):
                other.insert(table, [[f"w{number}", turn]], ["name", "number"])
            return int(other.command("SELECT getSetting('max_block_size')", settings={"max_block_size": 1000 + number}))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [1000 + number for number in range(8)]
    assert count(client) == 40


def test_external_data_is_refused(client: Client) -> None:
    """What the server cannot do is an error that says so."""
    from clickhouse_connect.driver.external import ExternalData

    data = ExternalData(file_name="t.csv", data=b"1\n", fmt="CSV", structure="a UInt8")
    with pytest.raises(DatabaseError, match="external data"):
        client.query("SELECT * FROM t", external_data=data)


def test_times_are_read_in_utc(client: Client, table: str) -> None:
    """Aware times come back to the microsecond."""
    at = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC) + timedelta(hours=1)
    client.insert(table, [[at, 1]], ["at", "number"])

    assert client.query("SELECT at FROM event", tz_mode="aware").first_row == (at,)
