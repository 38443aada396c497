"""What `outbox log move` says and asks; and who says that a log can be moved."""

import json

import pytest

from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.operations.log_move import plan as plans
from outbox_pipeline.stores import Stores
from tests.fixtures.commands import Outbox
from tests.fixtures.events import assert_each_exactly_once
from tests.fixtures.old_log import turn_into_log_of_before
from tests.fixtures.snapshots import delivered_batches


@pytest.fixture
def old(stores: Stores) -> Stores:
    """A log of before with one batch."""
    delivered_batches(stores, (6,))
    turn_into_log_of_before(stores.client, with_owner=True)
    create_table(stores.client)
    return stores


def table_check(stores: Stores) -> str:
    """Return what the doctor says of the log's table."""
    return next(check.message for check in examine(stores.settings) if check.name == "clickhouse table")


def test_a_log_is_moved_by_the_command(outbox: Outbox, old: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what it takes and asks for --yes; a disk that is too small is told first; then there is nothing to do."""
    made = outbox("init")
    looked = outbox("log", "move", "--dry-run")
    asked = outbox("log", "move")
    with monkeypatch.context() as patch:
        patch.setattr(plans, "free_bytes", lambda client: 1)
        full = outbox("log", "move", "--yes")
    none_begun = outbox("log", "move", "--abandon", "--yes")

    assert "'outbox log move' gives it a new table" in made.stdout
    assert "'outbox log move' gives it a new table" in table_check(old)
    assert looked.exit_code == 0
    for said in ("6 in 1 batch", "of unknown batches", "0 rows in 0 batches", "of disk beside the old one", "none"):
        assert said in looked.stdout
    assert (asked.exit_code, asked.stdout) == (2, "")
    assert "repeat with --yes" in asked.stderr
    assert full.exit_code == 1
    assert "free or add space, then repeat this" in full.stderr
    assert (none_begun.exit_code, none_begun.stdout) == (0, "There is no unfinished move.\n")

    moved = outbox("log", "move", "--yes", "--json")
    again = outbox("log", "move", "--yes")

    assert moved.exit_code == 0, moved.stderr
    result = json.loads(moved.stdout)
    assert (result["row_count"], result["was_moved"], result["differing"]) == (6, False, [])
    assert result["before"].startswith("event_log_before_move_")
    assert "there is nothing to move" in again.stdout
    assert "log move" not in outbox("init").stdout + table_check(old)
    assert_each_exactly_once(old.engine, old.client)
