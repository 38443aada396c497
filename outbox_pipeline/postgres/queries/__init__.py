"""Statements too long to read inside Python, one named `.sql` file each."""

from functools import cache
from importlib.resources import files

from sqlalchemy import TextClause, text


@cache
def query(name: str) -> TextClause:
    """Return the statement in `<name>.sql`, ready to execute with bound parameters."""
    return text(query_text(name))


@cache
def query_text(name: str) -> str:
    """Return the text of `<name>.sql`."""
    return files(__name__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
