"""What stands on which floor, where import contracts cannot say it: they know modules, and not what is taken of one."""

import ast
from pathlib import Path

import pytest

import outbox_pipeline

PACKAGE = Path(outbox_pipeline.__file__).parent
PROCEDURES = ("relay", "operations", "monitoring")

#: What a procedure hands on or catches, and how a URL is taken apart. Nothing of it makes a statement.
NO_STATEMENT = {"Connection", "Engine", "RowMapping", "SQLAlchemyError", "URL", "make_url"}


@pytest.mark.parametrize("room", PROCEDURES)
def test_a_procedure_makes_no_statement(room: str) -> None:
    """Statements on the ledger are named functions of `postgres`; a procedure calls them and makes none."""
    taken = {
        (file.name, name.name)
        for file in (PACKAGE / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sqlalchemy"
        for name in node.names
    }

    assert taken, "none of these modules imports SQLAlchemy any more: this test looks at nothing"
    assert {found for found in taken if found[1] not in NO_STATEMENT} == set()
