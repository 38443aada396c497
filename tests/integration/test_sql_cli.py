"""`outbox sql`: whose words an answer has."""

import pytest

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
