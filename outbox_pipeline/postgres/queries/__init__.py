"""Statements too long to read inside Python, one named `.sql` file each."""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import TextClause


@cache
def query(name: str) -> "TextClause":
    """Return the statement in `<name>.sql`, ready to execute with bound parameters."""
    # Applications that publish through a driver alone read the texts and never load SQLAlchemy.
    from sqlalchemy import text

    return text(query_text(name))


@cache
def query_text(name: str) -> str:
    """Return the text of `<name>.sql`."""
    return files(__name__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
