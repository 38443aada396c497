"""What a user of ClickHouse must be granted: one list, which the docs print, the doctor asks for and the tests grant.

Invariant: each right is needed by a statement of this package, and none needs another one. A table that the log gets is
one line of `_RIGHTS`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.quoting import quoted_name
from outbox_pipeline.clickhouse.versions import Version, version_of


class Duty(StrEnum):
    """What a user is for."""

    #: To deliver: Dagster's processes and the commands except `outbox init`.
    PIPELINE = "pipeline"
    #: To run `outbox init`.
    INIT = "init"
    #: To run `outbox log move`.
    MOVE = "move"
    #: To read what was delivered, and how far each day is.
    READER = "reader"


@dataclass(frozen=True)
class _Rights:
    """What each duty needs on one thing: a table by its role in the log, or by its own name with the database.

    `before`: the version from which on none of it is needed; None for every version.
    """

    on: str
    pipeline: tuple[str, ...] = ()
    init: tuple[str, ...] = ()
    reader: tuple[str, ...] = ()
    move: tuple[str, ...] = ()
    before: Version | None = None


_WRITE = ("SELECT", "INSERT", "ALTER DELETE")

#: Of two tables that exchange their names each is made and dropped.
_EXCHANGE = ("SELECT", "INSERT", "CREATE TABLE", "DROP TABLE")

_RIGHTS = (
    _Rights("table", _WRITE, ("SELECT", "CREATE TABLE", "ALTER ADD COLUMN"), ("SELECT",), _EXCHANGE),
    _Rights("fence", _WRITE, ("SELECT", "CREATE TABLE", "ALTER ADD COLUMN"), move=("SELECT", "INSERT")),
    # Who reads the view reads the table below it.
    _Rights("completeness", _WRITE, ("SELECT", "CREATE TABLE", "ALTER ADD COLUMN"), ("SELECT",), _EXCHANGE),
    _Rights("delivered", ("SELECT",), ("CREATE VIEW", "DROP VIEW"), ("SELECT",), ("SELECT",)),
    _Rights("sources", _WRITE, (*_WRITE, "CREATE TABLE"), move=("SELECT",)),
    _Rights("ledger", _WRITE, ("SELECT", "CREATE TABLE"), move=("SELECT",)),
    # `outbox init` sends a row as a delivery does, which reads the two tables above as well.
    _Rights("known_bytes", ("SELECT", "INSERT"), ("SELECT", "INSERT", "CREATE TABLE"), move=("SELECT",)),
    _Rights("migrations", ("SELECT",), ("SELECT", "INSERT", "CREATE TABLE"), move=("SELECT",)),
    # The new table while it is filled, and the old one under its last name.
    _Rights("moving_*", move=("SELECT", "INSERT", "ALTER DELETE", "CREATE TABLE", "DROP TABLE")),
    _Rights("before_move_*", move=("INSERT", "CREATE TABLE")),
    _Rights("completeness_moving_*", move=_EXCHANGE),
    # For the events of a batch that ClickHouse refuses; with it comes what `input()` takes before 26.5, which is CREATE
    # TEMPORARY TABLE ON *.*
    _Rights("probe_*", ("INSERT", "CREATE TABLE", "DROP TABLE")),
    # Whether an insert of an earlier attempt still runs.
    _Rights("system.processes", ("SELECT",), move=("SELECT",)),
    # Under this name older servers make the view that takes another's place.
    _Rights("._tmp_replace_*", init=("SELECT", "DROP TABLE"), before=(26, 9)),
)

#: Up to which version a right is another one, or several: for rows to be deleted the right to change the column that
#: hides them as well (https://github.com/ClickHouse/ClickHouse/pull/107491), for a view to take another's place those
#: of a table (https://github.com/ClickHouse/ClickHouse/pull/117967).
_OLDER: dict[str, tuple[Version, tuple[str, ...]]] = {
    "ALTER DELETE": ((26, 7), ("ALTER DELETE", "ALTER UPDATE(_row_exists)")),
    "CREATE VIEW": ((26, 9), ("INSERT", "CREATE TABLE")),
}


@dataclass(frozen=True)
class Grant:
    """Rights on one thing, as `GRANT` names both."""

    rights: tuple[str, ...]
    on: str

    def statement(self, user: str) -> str:
        """Return the statement that gives these rights to a user."""
        return f"GRANT {', '.join(self.rights)} ON {self.on} TO {quoted_name(user)}"


def grants_of(duty: Duty, *, database: str, table: str, version: Version) -> list[Grant]:
    """Return what a user with this duty needs for the log of that name on a server of that version."""
    wanted = (each for each in _RIGHTS if getattr(each, duty) and (each.before is None or version < each.before))
    return [
        Grant(tuple(_in_version(getattr(each, duty), version)), _place(each.on, database, table)) for each in wanted
    ]


def _in_version(rights: Iterable[str], version: Version) -> Iterator[str]:
    for right in rights:
        until, older = _OLDER.get(right, ((0, 0), ()))
        yield from older if version < until else (right,)


def _place(on: str, database: str, table: str) -> str:
    if on.startswith("system."):
        return on
    name = on.removeprefix(".") if on.startswith(".") else table if on == "table" else f"{table}_{on}"
    return f"{quoted_name(database)}.{name}"


@dataclass(frozen=True)
class _Asker:
    """Who asks, in which database of which server."""

    user: str
    database: str
    version: str


def missing_grants(client: EventLogClient, duty: Duty = Duty.PIPELINE) -> list[str]:
    """Return the statements that give the client's user what it lacks for a duty, one for each thing."""
    asker = _asker(client)
    wanted = _wanted(client, asker, duty)
    if _may(client, wanted):
        return []
    lacking = (Grant(tuple(filter(partial(_lacks, client, each.on), each.rights)), each.on) for each in wanted)
    return [grant.statement(asker.user) for grant in lacking if grant.rights]


def grants_problem(client: EventLogClient) -> str | None:
    """Return in one sentence which rights of a delivery the client's user lacks, None when it has them all."""
    missing = missing_grants(client)
    if not missing:
        return None
    said = f"{client.where} does not let this user do all that a delivery needs: {_remedy(missing)}"
    return f"{said} Only the user that delivers needs them."


def hidden_problem(client: EventLogClient, roles: Iterable[str]) -> str | None:
    """Return in one sentence which of the log's tables the user may not see, whether they are there or not.

    None when it may see them all; then one that ClickHouse does not list is not there.
    """
    asker = _asker(client)
    places = {role: _place(role, asker.database, client.table) for role in roles}
    unseen = {role: place for role, place in places.items() if _lacks(client, place, "SHOW TABLES")}
    if not unseen:
        return None
    names = ", ".join(client.names[role] for role in unseen)
    grants = [grant for grant in _wanted(client, asker, Duty.PIPELINE) if grant.on in unseen.values()]
    remedy = _remedy([grant.statement(asker.user) for grant in grants])
    return f"{client.where} shows this user no table {names}, because the user has no right on it: {remedy}"


def _remedy(statements: Sequence[str]) -> str:
    return f"as an administrator of ClickHouse run {'; '.join(statements)}."


def _asker(client: EventLogClient) -> _Asker:
    (row,) = client.rows("SELECT currentUser() AS user, currentDatabase() AS database, version() AS version")
    return _Asker(**row)


def _wanted(client: EventLogClient, asker: _Asker, duty: Duty) -> list[Grant]:
    return grants_of(duty, database=asker.database, table=client.table, version=version_of(asker.version))


def _lacks(client: EventLogClient, on: str, right: str) -> bool:
    return not _may(client, [Grant((right,), on)])


def _may(client: EventLogClient, grants: Sequence[Grant]) -> bool:
    # ClickHouse takes neither a parameter nor a format here.
    asked = ", ".join(f"{', '.join(grant.rights)} ON {grant.on}" for grant in grants)
    return bool(client.value(f"CHECK GRANT {asked}"))
