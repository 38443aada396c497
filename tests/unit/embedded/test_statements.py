"""The statement reader finds formats and data where ClickHouse's parser does, and leaves names alone."""

import pytest

from outbox_pipeline.embedded.statements import read_statement, refused_part


@pytest.mark.parametrize(
    ("text", "keyword", "format_name"),
    [
        (b"SELECT 1", "SELECT", None),
        (b"-- why\n/* so */ select 1 format JSON", "SELECT", "JSON"),
        (b"SELECT 1\n FORMAT Native SETTINGS max_threads = 1", "SELECT", "Native"),
        (b"SELECT 'x FORMAT CSV' FROM (SELECT 1 FORMAT TSV)", "SELECT", None),
        (b"SELECT a AS format FROM t", "SELECT", None),
        (b"SELECT `format` FROM t FORMAT CSV", "SELECT", "CSV"),
        (b"(SELECT 1)", "", None),
        (b"", "", None),
        (b"'never closed", "", None),
    ],
)
def test_first_word_and_format_of_a_query_are_found(text: bytes, keyword: str, format_name: str | None) -> None:
    """Comments, strings, brackets and columns called `format` do not mislead the reader."""
    statement = read_statement(text)

    assert statement.keyword == keyword
    assert (statement.format.argument if statement.format else None) == format_name


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (b"INSERT INTO t FORMAT TSV\n1\t2\n", b"1\t2\n"),
        (b"INSERT INTO t FORMAT TSV \t\r\n\n1", b"\n1"),
        (b"insert into db.format (format, `values`) format Native\n\x00FORMAT\xff'", b"\x00FORMAT\xff'"),
        (b"INSERT INTO values FORMAT CSV 1,2", b"1,2"),
        (b"INSERT INTO TABLE FUNCTION file('x.tsv') SETTINGS a = 'FORMAT b' FORMAT TSV\n", b""),
    ],
)
def test_data_of_an_insert_begins_after_its_format(text: bytes, data: bytes) -> None:
    """Data is taken to the byte, and nothing in it is read as SQL."""
    statement = read_statement(text)

    assert statement.data_start is not None
    assert text[statement.data_start :] == data


@pytest.mark.parametrize("text", [b"INSERT INTO t VALUES (1, 'FORMAT x')", b"INSERT INTO t SELECT 1"])
def test_insert_without_a_format_has_no_data(text: bytes) -> None:
    """VALUES and plain selects are the engine's to read."""
    assert read_statement(text).data_start is None


def test_source_goes_before_the_settings_of_an_insert() -> None:
    """`FROM INFILE` has its place between the columns and SETTINGS."""
    text = b"INSERT INTO t (a) SETTINGS async_insert = 0 FORMAT TSV\n"
    statement = read_statement(text)

    assert statement.source_start is not None
    assert text[statement.source_start :].startswith(b"SETTINGS")


def test_input_call_and_its_structure_are_found() -> None:
    """The call is found with its structure as it is written, and the format after the WHERE."""
    text = b"INSERT INTO t SELECT a FROM input('a Int8, b Enum8(\\'x\\' = 1)') WHERE throwIf(a = 1) = 0 FORMAT Arrow\n"
    statement = read_statement(text)

    (call,) = statement.inputs
    assert text[call.start : call.end].startswith(b"input(")
    assert call.argument == "'a Int8, b Enum8(\\'x\\' = 1)'"
    assert statement.format is not None
    assert statement.format.argument == "Arrow"
    assert statement.is_select


def test_column_called_input_is_no_call() -> None:
    """Only `input` with a structure in brackets is the table function."""
    assert read_statement(b"INSERT INTO t SELECT input FROM u FORMAT TSV\n").inputs == ()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"SELECT 1 INTO OUTFILE 'f'", "OUTFILE"),
        (b"select 1 into -- why\n outfile 'f'", "OUTFILE"),
        (b"EXPLAIN SELECT * FROM (SELECT 1) INTO OUTFILE 'f' FORMAT CSV", "OUTFILE"),
        (b"INSERT INTO t FROM INFILE 'f' FORMAT CSV", "INFILE"),
        (b"INSERT INTO t VALUES ('a'); SELECT 1 INTO OUTFILE 'f'", "OUTFILE"),
        (b"SELECT 1 /* never closed */ */ INTO OUTFILE 'f'", "OUTFILE"),
        (b"SELECT file('f')", "file()"),
        (b"SELECT `file` /* c */ ('f')", "file()"),
        (b"SELECT * FROM eval('SELECT 1')", "eval()"),
        (b"CREATE TABLE t (a Int8) ENGINE=MergeTree ORDER BY a SETTINGS disk = disk(type = web)", "disk()"),
        (b"CREATE TABLE t (a Int8) engine filelog('d', 'CSV')", "ENGINE filelog"),
        (b"CREATE TABLE t (a Int8) ENGINE = \"EmbeddedRocksDB\"(0, 'd')", 'ENGINE "EmbeddedRocksDB"'),
        (b"ATTACH TABLE t FROM 'd' (a Int8) ENGINE = Log", "ATTACH"),
        (b"attach table t", "ATTACH"),
        (b"INSERT INTO t SELECT file('f') FROM input('a String') FORMAT CSV\n", "file()"),
        ("SELECT file\u00a0('f')".encode(), "file()"),
        ("SELECT file\ufeff\u3000('f')".encode(), "file()"),
        ("CREATE TABLE t (a Int8) ENGINE\u2003=\u2003FileLog('f')".encode(), "ENGINE FileLog"),
        (b"SELECT `fi\\x6Ce`('f')", "file()"),
        ("SELECT \u201cfile\u201d('f')".encode(), "file()"),
    ],
)
def test_what_no_grant_covers_is_refused(text: bytes, part: str) -> None:
    """Clauses, functions and engines that reach files are found in any case and spelling, and named."""
    assert refused_part(text) == part


@pytest.mark.parametrize(
    "text",
    [
        b"SELECT 'INTO OUTFILE' AS a",
        b'SELECT `outfile`, "infile" FROM t',
        b"SELECT 1 -- INTO OUTFILE 'f'",
        b"SELECT 1 /* INTO /* nested */ OUTFILE */",
        b"SELECT $q$ INTO OUTFILE 'f' $q$",
        b"SELECT file, t.file, `file` FROM t WHERE file = 'file(1)'",
        b"SELECT count(file), max (executable), python, eval FROM t",
        b"SELECT * FROM filelog, engine WHERE engine.executable = 1",
        b"ALTER TABLE t ATTACH PARTITION 1",
        b"ALTER TABLE t ATTACH PART 'all_1_1_0'",
        b"SELECT free_space FROM system.disks WHERE name = 'disk'",
        b"INSERT INTO t VALUES ('file(1)', 'INTO OUTFILE')",
    ],
)
def test_names_and_texts_are_no_refused_parts(text: bytes) -> None:
    """Columns may have such names, clauses' between backticks; strings and comments say what they like."""
    assert refused_part(text) is None
