"""What stands on which floor, where import contracts cannot say it: they know modules, and not what is taken of one."""

import ast
from pathlib import Path

import pytest

import outbox_pipeline

PACKAGE = Path(outbox_pipeline.__file__).parent
PROCEDURES = ("relay", "operations", "monitoring")

#: What a procedure hands on or catches, and how a URL is taken apart. Nothing of it makes a statement.
NO_STATEMENT = {"Connection", "Engine", "RowMapping", "SQLAlchemyError", "URL", "make_url"}


#: What a connection sends a statement with.
SENDS = {"execute", "exec_driver_sql", "scalar", "scalars"}


def taken(node: ast.AST) -> set[str]:
    """Return what a piece of code takes of SQLAlchemy to make a statement, or sends one with."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sqlalchemy":
        return {name.name for name in node.names}
    if isinstance(node, ast.Import):
        return {name.name for name in node.names if name.name.split(".")[0] == "sqlalchemy"}
    return {node.attr} & SENDS if isinstance(node, ast.Attribute) else set()


@pytest.mark.parametrize("room", PROCEDURES)
def test_a_procedure_makes_no_statement(room: str) -> None:
    """Statements on the ledger are named functions of `postgres`; a procedure calls them, and makes and sends none."""
    found = {
        (file.name, name)
        for file in (PACKAGE / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in taken(node)
    }

    assert found, "none of these modules imports SQLAlchemy any more: this test looks at nothing"
    assert {each for each in found if each[1] not in NO_STATEMENT} == set()
