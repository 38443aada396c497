"""The numbered `.sql` files that make the log, each read into its statements.

Invariant of the files: ClickHouse has no transactions, so each statement can be repeated by itself (IF NOT EXISTS and
the like), none takes away what an earlier one has made, and each begins with what it does to which one table.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: Where the files are.
FOLDER = Path(__file__).parent

_NAME = re.compile(r"\{(\w+):Identifier\}")
_CREATES = re.compile(r"CREATE (TABLE IF NOT EXISTS|OR REPLACE VIEW) ")
_END = re.compile(r";\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Statement:
    """One statement; its tables are named by their role in the log (`EventLogClient.names`), as `{table:Identifier}`.

    `role`: that of the table or view it creates or changes; `is_create` when it makes it where it is missing;
    `keeps` when it then leaves one alone that is there, as only a table is.
    """

    text: str
    role: str
    is_create: bool
    keeps: bool

    def rendered(self, names: Mapping[str, str]) -> str:
        """Return the statement with the tables' own names in it.

        Every statement that makes or changes a table of the log passes here: what all of them need, such as a cluster
        behind the first name, is put in here. Parameters would not do, those in a view's text would be the view's own;
        the names come from a setting that allows no other letters than those of an identifier.
        """
        return _NAME.sub(lambda found: names[found[1]], self.text)


@dataclass(frozen=True)
class Migration:
    """One file: its number, its name without the number, and its statements in order."""

    version: str
    name: str
    statements: tuple[Statement, ...]


def as_statement(text: str) -> Statement:
    """Read one statement. Raises ValueError when it names no table of the log."""
    found = _NAME.search(text)
    if found is None:
        raise ValueError(f"names no table of the log: {text}")
    creates = _CREATES.match(text)
    return Statement(text, found[1], creates is not None, creates is not None and creates[1].startswith("TABLE"))


def migrations() -> tuple[Migration, ...]:
    """Return all migrations in the order they run."""
    return _read(FOLDER)


@cache
def _read(folder: Path) -> tuple[Migration, ...]:
    return tuple(_read_file(file) for file in sorted(folder.glob("*.sql")))


def _read_file(file: Path) -> Migration:
    version, _, name = file.stem.partition("_")
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    code = "".join(line for line in lines if not line.startswith("--"))
    texts = filter(None, map(str.strip, _END.split(code)))
    return Migration(version, name, tuple(map(as_statement, texts)))
