"""Statements too long to read inside Python, one named `.sql` file each.

What several of them say is written once, in a file of `shared`, and `{{ its name }}` stands where it is meant.
Invariant: it is put in before PostgreSQL sees the statement, so the plan is that of one text, and it takes no grant and
no migration: such a rule changes with the code, on a schema that two releases share.
"""

import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import TextClause


_SHARED = re.compile(r"\{\{ (\w+) \}\}")


@cache
def query(name: str) -> "TextClause":
    """Return the statement in `<name>.sql`, ready to execute with bound parameters."""
    # Applications that publish through a driver alone read the texts and never load SQLAlchemy.
    from sqlalchemy import text

    return text(query_text(name))


@cache
def query_text(name: str) -> str:
    """Return the text of `<name>.sql`, with what it shares with others in it."""
    return _with_shared(files(__name__).joinpath(f"{name}.sql").read_text(encoding="utf-8"))


def _with_shared(statement: str) -> str:
    return _SHARED.sub(lambda found: _shared(found[1]), statement)


@cache
def _shared(name: str) -> str:
    text = files(__name__).joinpath("shared", f"{name}.sql").read_text(encoding="utf-8")
    code = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("--"))
    return _with_shared(code.rstrip("\n"))
