"""Which views stand behind the log, whatever they are called, and which of them a repeated insert doubles."""

from outbox_pipeline.clickhouse.views import View, doubling_views, views_behind
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.stores import Stores

_WINDOW = "SETTINGS non_replicated_deduplication_window = 100"


def make(stores: Stores, *statements: str) -> str:
    """Run statements and return the name of the log's database."""
    for statement in statements:
        stores.client.run(statement)
    return str(stores.client.rows("SELECT currentDatabase() AS name")[0]["name"])


def test_a_log_without_views_has_none(stores: Stores) -> None:
    """Nor has one that is not there; the view that analysts read is not fed by inserts."""
    assert views_behind(stores.client) == []
    make(stores, "CREATE TABLE elsewhere (n UInt64) ENGINE = MergeTree ORDER BY n")
    make(stores, "CREATE MATERIALIZED VIEW other ENGINE = Memory AS SELECT n FROM elsewhere")
    assert views_behind(stores.client) == []
    make(stores, "DROP TABLE {table:Identifier}")
    assert views_behind(stores.client) == []


def test_each_view_is_told_with_its_target(stores: Stores) -> None:
    """With a target of its own or an inner one, with a window or without, under any name, behind another view too."""
    database = make(
        stores,
        f"CREATE TABLE safe (n UInt64) ENGINE = MergeTree ORDER BY n {_WINDOW}",
        "CREATE MATERIALIZED VIEW into_safe TO safe AS SELECT position AS n FROM event_log",
        "CREATE TABLE `a `` b` (n UInt64) ENGINE = ReplacingMergeTree ORDER BY n",
        "CREATE MATERIALIZED VIEW `no TO, no window` TO `a `` b` AS SELECT position AS n FROM event_log",
        f"CREATE MATERIALIZED VIEW inner ENGINE = MergeTree ORDER BY n {_WINDOW}"
        " AS SELECT position AS n FROM event_log",
        "CREATE TABLE passing (n UInt64) ENGINE = Null",
        "CREATE MATERIALIZED VIEW into_passing TO passing AS SELECT n FROM safe",
        "CREATE MATERIALIZED VIEW behind ENGINE = Memory AS SELECT n FROM passing",
    )
    found = {view.name: view for view in views_behind(stores.client)}

    assert found[f"{database}.into_safe"] == View(f"{database}.into_safe", f"{database}.safe", "MergeTree", True)
    odd = found[f"{database}.`no TO, no window`"]
    assert (odd.target, odd.engine, odd.has_window) == (f"{database}.`a \\` b`", "ReplacingMergeTree", False)
    assert found[f"{database}.inner"].has_window
    assert (found[f"{database}.behind"].engine, found[f"{database}.behind"].has_window) == ("Memory", False)
    assert found[f"{database}.into_passing"].has_window
    assert len(found) == 5
    assert list(found)[-1] == f"{database}.behind"


def test_the_doctor_warns_of_views_that_double(stores: Stores) -> None:
    """Doing what it says silences it."""
    make(
        stores,
        "CREATE TABLE numbers (n UInt64) ENGINE = MergeTree ORDER BY n",
        "CREATE MATERIALIZED VIEW into_numbers TO numbers AS SELECT position AS n FROM event_log",
    )
    (check,) = [check for check in examine(stores.settings) if check.name == "clickhouse views"]
    assert (check.ok, check.is_warning) == (True, True)

    stores.client.run(f"ALTER{check.message.rpartition('ALTER')[2].rstrip('.')}")

    assert "into_numbers" in check.message
    assert doubling_views(stores.client) is None
