"""`outbox sql`: whose words an answer has."""

import pytest
from typer.testing import CliRunner

from outbox_pipeline.cli.main import app
from tests.fixtures.commands import Outbox


def test_refused_query_says_what_clickhouse_says(outbox: Outbox) -> None:
    """A wrong query is the asker's own text; the answer does not send them to their setup."""
    result = outbox("sql", "SELECT nonsense")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "nonsense" in result.stderr
    assert "outbox init" not in result.stderr
    assert "PostgreSQL" not in result.stderr


@pytest.mark.parametrize("query", ["SELECT * FROM outbox.event LIMIT 1", "SELECT 1 FROM Outbox . batch, event_log"])
def test_a_query_of_the_ledger_is_sent_to_postgres(outbox: Outbox, query: str) -> None:
    """Tables of the schema outbox are in PostgreSQL, and this command asks ClickHouse."""
    result = outbox("sql", query)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "'outbox sql' asks ClickHouse" in result.stderr
    assert "psql" in result.stderr


def test_every_kind_of_statement_works_in_a_pipe(outbox: Outbox) -> None:
    """No word is added to a statement, so those that take no FORMAT work too."""
    for statement in (
        "CREATE TABLE mine (number Int32, word String DEFAULT 'none') ENGINE = MergeTree ORDER BY number",
        "INSERT INTO mine (number) VALUES (1), (2)",
        "INSERT INTO mine FORMAT CSV\n3,three;\n4,four\n",
        "INSERT INTO mine SELECT 5, 'five'",
        "ALTER TABLE mine ADD COLUMN late UInt8",
        "DELETE FROM mine WHERE number = 1",
        "RENAME TABLE mine TO yours;",
    ):
        done = outbox("sql", statement)
        assert (done.exit_code, done.output) == (0, ""), statement

    shown = outbox("sql", "SELECT number, word FROM yours ORDER BY number FORMAT CSV")

    assert shown.stdout == '2,"none"\n3,"three;"\n4,"four"\n5,"five"\n'
    assert outbox("sql", "SELECT 1 AS one, NULL AS nothing").stdout == "1\t\\N\n"
    assert outbox("sql", "--json", "SELECT 1 AS one").stdout == '{"one":1}\n'


def test_a_dash_reads_the_statement_from_stdin(outbox: Outbox) -> None:
    """A file of SQL, data of an INSERT included, is sent byte for byte."""
    assert outbox("sql", "CREATE TABLE mine (word String) ENGINE = MergeTree ORDER BY word").exit_code == 0

    read = outbox("sql", "-", given="-- a question\nSELECT 'ä;' AS word;\n")
    written = CliRunner().invoke(app, ["sql", "-"], input=b"INSERT INTO mine FORMAT RowBinary\n\x02\xff;")
    sent = outbox("sql", "INSERT INTO mine FORMAT TSV", given="from a file\n")

    assert (read.exit_code, read.stdout) == (0, "ä;\n")
    assert (written.exit_code, written.output, sent.exit_code, sent.output) == (0, "", 0, "")
    assert outbox("sql", "SELECT hex(word) FROM mine ORDER BY word").stdout.split() == [
        b"from a file".hex().upper(),
        "FF3B",
    ]


def test_a_format_of_ones_own_goes_with_no_option(outbox: Outbox) -> None:
    """With --json stdout holds JSON and nothing else, so another FORMAT is wrong use."""
    for option in ("--json", "--format=CSV"):
        refused = outbox("sql", option, "SELECT 1 FORMAT TSV")
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert f"names FORMAT TSV of its own: leave out {option.partition('=')[0]}" in refused.stderr


def test_a_refusal_has_the_words_of_clickhouse_alone(outbox: Outbox) -> None:
    """Nothing that the driver writes around them, and no doubt about what was not done."""
    assert outbox("sql", "CREATE TABLE mine (x Int8) ENGINE = MergeTree ORDER BY x").exit_code == 0

    refused = outbox("sql", "RENAME TABLE mine TO event_log")
    late = outbox(
        "sql", "SELECT sleepEachRow(0.1) FROM numbers(100) SETTINGS max_execution_time = 1, max_block_size = 1"
    )

    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("ClickHouse refuses the statement: Table ")
    assert "already exists" in refused.stderr
    assert "may or may not" not in refused.stderr
    assert "for url" not in refused.stderr
    assert "may have done a part of it: Timeout exceeded" in late.stderr
