"""The materialized views that an insert into the event log feeds, and which of them a repeated insert leaves as it was.

A view puts its rows into a target of its own, and whether that drops what it has already got is the target's affair: it
does where it remembers the tokens of inserts. Invariant: a view whose target is not to be seen counts as one that
forgets.
"""

import re
from dataclasses import dataclass
from typing import Any

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.merge_tree import setting_of
from outbox_pipeline.clickhouse.quoting import quoted_name
from outbox_pipeline.clickhouse.table import DEDUPLICATION_WINDOW

#: What a table is called in ClickHouse: its database, and its name there.
Name = tuple[str, str]

_TABLES = """
SELECT database, name, engine, create_table_query, toString(uuid) AS uuid,
       arrayZip(dependencies_database, dependencies_table) AS views
FROM system.tables
WHERE database IN {databases:Array(String)} AND name IN {names:Array(String)}
"""

_IDENTIFIER = r"(?:`(?:[^`\\]|\\.)+`|\w+)"
_TARGET = re.compile(
    rf"CREATE MATERIALIZED VIEW {_IDENTIFIER}\.{_IDENTIFIER} TO ({_IDENTIFIER})\.({_IDENTIFIER})(?: |$)"
)

#: By how many tokens a table remembers, and ClickHouse's own default of it.
_OWN_WINDOW = ("non_replicated_deduplication_window", "0")
_SHARED_WINDOW = ("replicated_deduplication_window", "10000")
_NO_UUID = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class View:
    """A materialized view behind the log, directly or behind the target of another one.

    `name` and `target` are as SQL writes them, `target` None where this user may see neither view nor target.
    `has_window`: an insert that is repeated under its token does not double the target's rows. `engine` is the
    target's, empty where it is not to be seen.
    """

    name: str
    target: str | None
    engine: str
    has_window: bool


def views_behind(client: EventLogClient) -> list[View]:
    """Return every view that an insert into the log feeds, nearest first; empty where there is no log.

    Of a view that is refreshed by the clock no insert knows, so it is none of them.
    """
    (database,) = (str(row["name"]) for row in client.rows("SELECT currentDatabase() AS name"))
    found: dict[Name, View] = {}
    seen: set[Name] = set()
    sources = {(database, client.table)}
    while sources:
        seen |= sources
        tables = _read(client, sources)
        names = {(str(view[0]), str(view[1])) for table in tables.values() for view in table["views"]}
        views = _read(client, names)
        targets = {name: _target_of(view) for name, view in views.items()}
        shown = _read(client, set(targets.values()))
        for name in sorted(names):
            target = targets.get(name)
            found.setdefault(name, _view(client, name, target, shown.get(target) if target else None))
        sources = set(shown) - seen
    return list(found.values())


def doubling_views(client: EventLogClient) -> str | None:
    """Say which views behind the log double their rows when an insert is repeated, and what to do; None for none."""
    doubling = [view for view in views_behind(client) if not view.has_window]
    if not doubling:
        return None
    named = ", ".join(f"{view.name} ({_into(view)})" for view in doubling)
    remedies = [
        f"ALTER TABLE {view.target} MODIFY SETTING {_window_of(view.engine)[0]} = {DEDUPLICATION_WINDOW}"
        for view in doubling
        if view.engine.endswith("MergeTree")
    ]
    others = [] if len(remedies) == len(doubling) else [f"let other targets be MergeTree tables with {_OWN_WINDOW[0]}"]
    return (
        f"A repeated insert doubles the rows of views behind table {client.table}, because their targets have no "
        f"deduplication window: {named}. Give them one: {'; '.join([*remedies, *others])}."
    )


def _into(view: View) -> str:
    if view.target is None:
        return "its target is not to be seen by this user"
    return f"into {view.target}, a {view.engine}"


def _read(client: EventLogClient, names: set[Name]) -> dict[Name, dict[str, Any]]:
    if not names:
        return {}
    asked = {"databases": sorted({database for database, _ in names}), "names": sorted({name for _, name in names})}
    found = {(str(row["database"]), str(row["name"])): row for row in client.rows(_TABLES, asked)}
    return {name: row for name, row in found.items() if name in names}


def _target_of(view: dict[str, Any]) -> Name:
    named = _TARGET.match(view["create_table_query"])
    if named is not None:
        return _unquoted(named[1]), _unquoted(named[2])
    inner = f".inner.{view['name']}" if view["uuid"] == _NO_UUID else f".inner_id.{view['uuid']}"
    return str(view["database"]), inner


def _view(client: EventLogClient, name: Name, target: Name | None, table: dict[str, Any] | None) -> View:
    if target is None or table is None:
        return View(_quoted(name), None, "", has_window=False)
    return View(_quoted(name), _quoted(target), table["engine"], has_window=_has_window(client, table))


def _has_window(client: EventLogClient, table: dict[str, Any]) -> bool:
    engine = str(table["engine"])
    if not engine.endswith("MergeTree"):
        # One that keeps no row doubles none; what is behind it is looked at by itself.
        return engine == "Null"
    setting, usual = _window_of(engine)
    return setting_of(client, table["create_table_query"], setting, usual=usual) != "0"


def _window_of(engine: str) -> tuple[str, str]:
    return _SHARED_WINDOW if engine.startswith(("Replicated", "Shared")) else _OWN_WINDOW


def _quoted(name: Name) -> str:
    return ".".join(map(quoted_name, name))


def _unquoted(identifier: str) -> str:
    return re.sub(r"\\(.)", r"\1", identifier[1:-1]) if identifier.startswith("`") else identifier
