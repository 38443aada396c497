"""The list of rights in ClickHouse: the docs print it, and each table of the log is in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox_pipeline.clickhouse.client import EventLogClient
from outbox_pipeline.clickhouse.grants import Duty, Grant, grants_of
from outbox_pipeline.clickhouse.migrations.files import migrations
from outbox_pipeline.clickhouse.quoting import quoted_name
from outbox_pipeline.settings import Settings

DEPLOYING = Path(__file__).parents[2] / "docs" / "deploying.md"
NEWEST = (26, 9)
#: The newest, and the last of those that need more, down to the oldest.
VERSIONS = (NEWEST, (26, 8), (26, 6), (25, 8))
#: Who has each duty in the docs' example.
USERS = {Duty.PIPELINE: "outbox", Duty.INIT: "outbox_init", Duty.MOVE: "outbox_init", Duty.READER: "analyst"}


def rights_of(duty: Duty) -> dict[str, tuple[str, ...]]:
    """Return a duty's rights by table, on the newest version."""
    return {
        grant.on.removeprefix("d."): grant.rights for grant in grants_of(duty, database="d", table="t", version=NEWEST)
    }


def written(duty: Duty) -> Iterator[str]:
    """Yield the docs' lines for a duty: the newest version's statements, then what older ones need beside them."""
    known: set[tuple[str, str]] = set()
    for version in VERSIONS:
        new = [
            Grant(rights, grant.on)
            for grant in grants_of(duty, database="events", table="event_log", version=version)
            if (rights := tuple(right for right in grant.rights if (right, grant.on) not in known))
        ]
        if known and new:
            yield f"-- before {version[0]}.{version[1] + 1}:"
        yield from (f"{grant.statement(USERS[duty])};" for grant in new)
        known |= {(right, grant.on) for grant in new for right in grant.rights}


@pytest.mark.parametrize("duty", Duty)
def test_the_docs_print_the_list(duty: Duty) -> None:
    """Each duty has one block of SQL in the docs, with these statements and no others, for each promised version."""
    assert "\n```sql\n" + "\n".join(written(duty)) + "\n```\n" in DEPLOYING.read_text(encoding="utf-8")


def test_each_table_of_the_log_is_in_the_list() -> None:
    """Whoever delivers has a right on each, without which it would not be seen."""
    names = EventLogClient(None, Settings(clickhouse_table="t")).names  # type: ignore[arg-type]

    assert set(names.values()) <= set(rights_of(Duty.PIPELINE))


def test_what_a_migration_does_takes_a_right_of_init() -> None:
    """Each statement of the migrations has its right, and no right to make or alter is there without a statement."""
    wanted: dict[str, set[str]] = {"t_migrations": {"CREATE TABLE"}}
    for statement in (statement for migration in migrations() for statement in migration.statements):
        name = "t" if statement.role == "table" else f"t_{statement.role}"
        words = {True: "CREATE TABLE", False: "ALTER ADD COLUMN"}[statement.is_create]
        made = {"CREATE VIEW", "DROP VIEW"} if statement.is_create and not statement.keeps else {words}
        wanted.setdefault(name, set()).update(made)

    changing = {name: {each for each in rights if " " in each} for name, rights in rights_of(Duty.INIT).items()}

    assert {name: rights - {"ALTER DELETE"} for name, rights in changing.items() if rights} == wanted


def test_names_that_need_it_are_quoted() -> None:
    """A database and a user may have any name; a table has letters, digits and underscores."""
    (first, *_) = grants_of(Duty.READER, database="my db", table="t", version=NEWEST)

    assert first.on == "`my db`.t"
    assert Grant(("SELECT",), "d.t").statement("a`b\\c") == "GRANT SELECT ON d.t TO `a\\`b\\\\c`"
    assert quoted_name("plain_1") == "plain_1"
