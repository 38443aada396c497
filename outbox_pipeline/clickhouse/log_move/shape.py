"""What the table of the event log is made of, and the statement that makes another one like it, sorted as today.

Invariant: whatever a person has added to the table (columns, defaults, codecs, indices, projections, constraints,
settings, comments) stands in the new one as well; what cannot be taken along is named before anything is made.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.quoting import quoted_name
from outbox_pipeline.errors import ConfigurationError

_TABLES = """
SELECT name, engine_full, sorting_key, primary_key, comment, create_table_query, total_rows, total_bytes,
       arrayMap((database, name) -> database || '.' || name, dependencies_database, dependencies_table) AS views
FROM system.tables
WHERE database = currentDatabase() AND (name IN {names:Array(String)} OR startsWith(name, {prefix:String}))
"""

_COLUMNS = """
SELECT name, default_kind FROM system.columns
WHERE database = currentDatabase() AND table = {name:String} ORDER BY position
"""

_DATABASE = "SELECT engine FROM system.databases WHERE name = currentDatabase()"

_POLICIES = """
SELECT DISTINCT short_name FROM system.row_policies WHERE database = currentDatabase() AND table = {name:String}
"""

_FREE = """
SELECT sum(unreserved_space) AS free FROM system.disks WHERE name IN (
    SELECT arrayJoin(disks) FROM system.storage_policies WHERE policy_name = (
        SELECT storage_policy FROM system.tables WHERE database = currentDatabase() AND name = {table:String}
    )
)
"""

#: Databases whose tables can be exchanged: ClickHouse's usual one, and those that are made of it. The embedded
#: engine's own is of the first kind.
_EXCHANGING = frozenset({"Atomic", "Replicated", "Shared", "Overlay"})
#: Text in quotes, which may hold any word.
_QUOTED = re.compile(r"'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.)*`")
_TTL = re.compile(r"\bTTL\b")

#: What stands first in the current sorting key.
KEY_BEGINS = "source"


@dataclass(frozen=True)
class Shape:
    """A table as ClickHouse describes it; `views` are the materialized ones that an insert into it feeds.

    `rows` counts those that are deleted and not merged away yet, too; `bytes` are on disk.
    """

    name: str
    engine: str
    sorting_key: str
    primary_key: str
    comment: str
    statement: str
    rows: int
    bytes: int
    views: tuple[str, ...]

    @property
    def has_key_of_today(self) -> bool:
        """Tell whether the rows of a source stand together."""
        return self.sorting_key.split(", ")[0] == KEY_BEGINS

    @property
    def body(self) -> str:
        """Columns, indices, projections and constraints, in ClickHouse's words."""
        return self.statement.partition("(")[2].partition(f") ENGINE = {self.engine.split(' ')[0]}")[0]


def shape_of(client: EventLogClient, name: str) -> Shape | None:
    """Return a table of the log's database, None where there is none of that name."""
    return next((shape for shape in _shapes(client, names=[name], prefix=name) if shape.name == name), None)


def shapes_from(client: EventLogClient, prefix: str) -> dict[int, Shape]:
    """Return the tables whose name is *prefix* and the number of a run, by this number."""
    found = _shapes(client, names=[], prefix=prefix)
    numbers = ((shape.name.removeprefix(prefix), shape) for shape in found)
    return {int(number): shape for number, shape in numbers if number.isdecimal()}


def columns_of(client: EventLogClient, name: str) -> list[str]:
    """Return the columns that hold what was inserted; others are computed from them."""
    rows = client.rows(_COLUMNS, {"name": name})
    return [str(row["name"]) for row in rows if row["default_kind"] in ("", "DEFAULT")]


def statement_like(shape: Shape, name: str, database: str) -> str:
    """Return the statement that makes a table like this one, with the source first in its key."""
    comment = shape.comment.replace("\\", "\\\\").replace("'", "\\'")
    said = f" COMMENT '{comment}'" if shape.comment else ""
    own = ".".join(map(quoted_name, (database, shape.name)))
    new = ".".join(map(quoted_name, (database, name)))
    return f"CREATE TABLE IF NOT EXISTS {new} AS {own} ENGINE = {moved_engine(shape)}{said}"


def moved_engine(shape: Shape) -> str:
    """Return engine, partition key, order and settings, with the source first in the order.

    Raises ConfigurationError where ClickHouse's words are not understood.
    """
    engine = shape.engine
    keys = {"ORDER BY": shape.sorting_key, "PRIMARY KEY": shape.primary_key}
    for word, key in keys.items():
        found = [place for place in _places(engine, word) if _is_key(engine, place, key)]
        if len(found) != 1 and word == "ORDER BY":
            raise ConfigurationError(
                f"The key of table {shape.name} is not understood ({engine}), so it is not moved: move it by hand, as "
                "docs/operating.md says."
            )
        for start, end in found:
            engine = f"{engine[:start]}{word} ({KEY_BEGINS}, {key}){engine[end + len(_written(engine, end, key)) :]}"
    return engine


def _places(text: str, word: str) -> Iterator[tuple[int, int]]:
    """Yield where *word* with a blank behind it stands outside of quotes: its start, and the start of what follows."""
    masked = _QUOTED.sub(lambda found: "." * len(found[0]), text)
    for found in re.finditer(rf"\b{word} ", masked):
        yield found.start(), found.end()


def _written(text: str, start: int, key: str) -> str:
    in_brackets = f"({key})"
    return in_brackets if text.startswith(in_brackets, start) else key


def _is_key(text: str, place: tuple[int, int], key: str) -> bool:
    return text.startswith((key, f"({key})"), place[1])


def shape_problem(client: EventLogClient, shape: Shape) -> str | None:
    """Return in one sentence what of this table cannot be moved, and what to do; None when all of it can."""
    engine = str(client.rows(_DATABASE)[0]["engine"])
    if engine not in _EXCHANGING:
        return (
            f"The database of {client.where} has engine {engine}, in which ClickHouse cannot exchange two tables: only "
            "a database with ENGINE = Atomic can."
        )
    if _TTL.search(_QUOTED.sub("", f"{shape.body} {shape.engine}")):
        return (
            f"Table {shape.name} has a TTL, by which rows go while they are copied and compared: note it (SHOW CREATE "
            f"TABLE {shape.name}), ALTER TABLE {shape.name} REMOVE TTL, or of a column MODIFY COLUMN … REMOVE TTL, "
            "then repeat this, and set the TTL again afterwards."
        )
    return None


def policies_of(client: EventLogClient, name: str) -> list[str] | None:
    """Return the row policies on a table, None where this user may not see them."""
    try:
        return [str(row["short_name"]) for row in client.rows(_POLICIES, {"name": name})]
    except ConfigurationError:
        return None


def free_bytes(client: EventLogClient) -> int | None:
    """Return how much is free on the disks of the log's table, None where this user may not see that."""
    try:
        (row,) = client.rows(_FREE)
    except ConfigurationError:
        return None
    return int(row["free"]) or None


def _shapes(client: EventLogClient, *, names: list[str], prefix: str) -> list[Shape]:
    return [_as_shape(row) for row in client.rows(_TABLES, {"names": names, "prefix": prefix})]


def _as_shape(row: dict[str, Any]) -> Shape:
    return Shape(
        name=str(row["name"]),
        engine=str(row["engine_full"]),
        sorting_key=str(row["sorting_key"]),
        primary_key=str(row["primary_key"]),
        comment=str(row["comment"]),
        statement=str(row["create_table_query"]),
        rows=int(row["total_rows"] or 0),
        bytes=int(row["total_bytes"] or 0),
        views=tuple(map(str, row["views"])),
    )
