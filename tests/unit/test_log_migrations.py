"""The files that make the log keep their rules: each statement repeatable, about one table, and nothing taken away."""

import re

import pytest
from pydantic import SecretStr

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.migrations.files import FOLDER, Statement, as_statement, migrations
from outbox_pipeline.clickhouse.table import DEDUPLICATION_WINDOW, column_comments
from outbox_pipeline.event_schema import EVENT_COLUMNS
from outbox_pipeline.settings import Settings

STATEMENTS = [statement for migration in migrations() for statement in migration.statements]

#: What a statement may be: it makes what is missing, or changes it in a way that can be repeated.
_REPEATABLE = re.compile(
    r"CREATE TABLE IF NOT EXISTS \{\w+:Identifier\}[\s(]"
    r"|CREATE OR REPLACE VIEW \{\w+:Identifier\}\s"
    r"|ALTER TABLE \{\w+:Identifier\}\s+(ADD (COLUMN|INDEX) IF NOT EXISTS|MODIFY (COMMENT|SETTING)) "
)


def names() -> dict[str, str]:
    """Return the log's tables by role."""
    settings = Settings(clickhouse_url=SecretStr("http://localhost"), clickhouse_table="log")
    return EventLogClient(None, settings).names  # type: ignore[arg-type]


def test_numbers_follow_each_other() -> None:
    """Files run in the order of their numbers, and none is missing or there twice."""
    assert [migration.version for migration in migrations()] == [f"{n:04}" for n in range(1, len(migrations()) + 1)]
    assert sorted(file.stem for file in FOLDER.glob("*.sql")) == [
        f"{each.version}_{each.name}" for each in migrations()
    ]


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement.text[:60])
def test_a_statement_can_be_repeated(statement: Statement) -> None:
    """It is of a form that does nothing the second time, names tables of the log only, and reads as it is sent."""
    assert _REPEATABLE.match(statement.text)
    assert statement.is_create == statement.text.startswith("CREATE ")
    assert statement.keeps == statement.text.startswith("CREATE TABLE IF")
    assert set(re.findall(r"\{(\w+):Identifier\}", statement.text)) <= set(names())
    # The driver takes it for a place where a value goes.
    assert "%" not in statement.text
    assert "{" not in statement.rendered(names())


def test_a_statement_without_a_table_is_refused() -> None:
    """Each is about a table of the log, whose name it is given."""
    with pytest.raises(ValueError, match="names no table of the log"):
        as_statement("CREATE TABLE IF NOT EXISTS other (n UInt8) ENGINE = Memory")


def test_every_column_is_explained_where_it_is_made() -> None:
    """What the asset shows of a column is the comment it has in ClickHouse."""
    assert list(column_comments()) == [column.name for column in EVENT_COLUMNS]
    assert f"non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}," in STATEMENTS[0].text
