"""The statements on the ledger: what several of them say is written once."""

import re
from pathlib import Path

import pytest

from outbox_pipeline.postgres import queries
from outbox_pipeline.postgres.queries import query_text

FOLDER = Path(queries.__file__).parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.sql"))
SHARED = sorted(file.stem for file in (FOLDER / "shared").glob("*.sql"))


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_is_whole(name: str) -> None:
    """Nothing that it shares with others is left to be put in."""
    assert not re.search(r"\{\{|\}\}", query_text(name))


@pytest.mark.parametrize("shared", SHARED)
def test_what_is_shared_is_used_by_several(shared: str) -> None:
    """Each file of `shared` stands in two statements at least, directly or in another shared one."""
    first_line = next(
        line for line in (FOLDER / "shared" / f"{shared}.sql").read_text("utf-8").splitlines() if line[:2] != "--"
    )

    assert sum(first_line in query_text(name) for name in NAMES) >= 2


@pytest.mark.parametrize("rule", ["FROM pg_locks\nWHERE locktype = 'relation'", "NOT gap.holders <@ inserting.holders"])
def test_a_rule_is_written_in_one_file(rule: str) -> None:
    """Who could still fill a position, and which positions are pending, is written in one place."""
    texts = {file: re.sub(r"\n\s+", "\n", file.read_text("utf-8")) for file in FOLDER.rglob("*.sql")}

    assert [file.parent.name for file, text in texts.items() if rule in text] == ["shared"]
