"""Nothing that the profile of a user of ClickHouse sets changes what is delivered, proved and compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine

from outbox_pipeline.clickhouse.client import clickhouse_client, open_client
from outbox_pipeline.clickhouse.schema import migrate_log
from outbox_pipeline.clickhouse.statement_settings import BATCH_INSERT, STATEMENT
from outbox_pipeline.days import ALL_DAYS
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.replay import Outcome, batches_of_days, replay
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.profiles import ProfileProxy, engine_under
from tests.fixtures.proxy import through
from tests.fixtures.servers import Servers
from tests.fixtures.stores import OWN_IDENTITY, fresh_clickhouse, fresh_database, url_of

_READING = ("max_rows_to_read", "max_bytes_to_read", "max_rows_to_read_leaf", "max_bytes_to_read_leaf")
_GROUPING = (
    *("max_rows_to_group_by", "max_rows_to_sort", "max_bytes_to_sort", "max_rows_in_distinct", "max_bytes_in_distinct"),
    *("max_rows_in_set", "max_bytes_in_set"),
)
_RESULT = ("max_result_rows", "max_result_bytes")
_SHAPE = ("max_columns_to_read", "max_temporary_columns", "max_temporary_non_const_columns", "max_partitions_to_read")
_TIME = ("max_execution_time", "max_execution_time_leaf", "max_estimated_execution_time")

#: Answers that are given again.
_KEPT = {
    "use_query_cache": "1",
    "query_cache_nondeterministic_function_handling": "save",
    "query_cache_system_table_handling": "save",
    "query_cache_ttl": "300",
    "use_query_condition_cache": "1",
}
_ROWS = {
    **{"final": "1", "apply_deleted_mask": "0", "apply_patch_parts": "0", "limit": "1"},
    **{"additional_result_filter": "1 = 0", "additional_table_filters": "{'event_log': 'position % 2 = 0'}"},
}
_MEANINGS = {
    "session_timezone": "Pacific/Auckland",
    "data_type_default_nullable": "1",
    "output_format_native_encode_types_in_binary_format": "1",
}
_INSERTS = {
    **{"async_insert": "1", "wait_for_async_insert": "0", "async_insert_busy_timeout_ms": "10000"},
    **{"async_insert_use_adaptive_busy_timeout": "0", "materialized_views_ignore_errors": "1"},
    "deduplicate_blocks_in_dependent_materialized_views": "0",
    **{"deduplicate_insert": "disable", "insert_deduplicate": "0", "deduplicate_insert_select": "disable"},
    **{"parallel_view_processing": "1", "max_insert_threads": "4", "max_partitions_per_insert_block": "1"},
    **dict.fromkeys(("max_insert_block_size", "min_insert_block_size_rows", "min_insert_block_size_bytes"), "10"),
}
_DELETES = {
    **{"enable_lightweight_delete": "0", "lightweight_delete_mode": "lightweight_update_force"},
    **{"lightweight_deletes_sync": "0", "mutations_sync": "0"},
}
_CUTTING_SHORT = {
    **dict.fromkeys((*_READING, *_GROUPING, *_RESULT), "1"),
    **dict.fromkeys(_TIME, "0.000001"),
    **dict.fromkeys(("read_overflow_mode", "read_overflow_mode_leaf", "result_overflow_mode"), "break"),
    **dict.fromkeys(("sort_overflow_mode", "set_overflow_mode", "distinct_overflow_mode"), "break"),
    **dict.fromkeys(("timeout_overflow_mode", "timeout_overflow_mode_leaf"), "break"),
    "group_by_overflow_mode": "any",
}
_REFUSING = {
    **dict.fromkeys((*_READING, *_GROUPING, *_SHAPE, *_RESULT), "1"),
    **dict.fromkeys(_TIME, "0.000001"),
    **dict.fromkeys(("min_execution_speed", "min_execution_speed_bytes"), "1000000000000"),
    "timeout_before_checking_execution_speed": "0",
}
_DEMANDS = {
    **dict.fromkeys(("force_index_by_date", "force_primary_key", "force_optimize_projection"), "1"),
    "force_optimize_projection_name": "nothing",
}

#: What a profile may set; those of a step reach a request together. Without one of the list the others still hold, so
#: none hides what it would do.
SETTINGS: dict[str, dict[str, str]] = {
    "other answers": {**_KEPT, **_ROWS, **_MEANINGS, **_INSERTS, **_DELETES},
    "short answers": {**_CUTTING_SHORT, **_DEMANDS, "offset": "1", "aggregate_functions_null_for_empty": "1"},
    "no answers": {
        **_REFUSING,
        **{"use_query_cache": "1", "enable_parallel_replicas": "2", "max_parallel_replicas": "3"},
        "empty_result_for_aggregation_by_empty_set": "1",
    },
    # Other defaults for all that is not set, and what makes reads slower.
    "older versions": {
        **{"compatibility": "22.3", "max_threads": "1", "max_block_size": "2"},
        **{"use_skip_indexes": "0", "optimize_move_to_prewhere": "0"},
    },
}

#: What makes the engine's own first questions fail, goes with no filter, or fails mutations, which run under the
#: server's default profile and not under that of the statement: here both are the same.
_OF_A_START = frozenset(
    {"limit", "offset", "use_query_cache", "additional_result_filter", "max_columns_to_read", "max_block_size"}
    | {"max_temporary_columns", "max_temporary_non_const_columns", *_TIME, "max_bytes_to_read"}
    | {"min_execution_speed", "min_execution_speed_bytes", "max_result_bytes", "max_bytes_to_read_leaf"}
    | {"enable_parallel_replicas", "force_optimize_projection", "force_optimize_projection_name"}
)


@dataclass(frozen=True)
class Walk:
    """Both stores, and a proxy by which requests reach ClickHouse with some profile."""

    stores: Stores
    proxy: ProfileProxy

    @contextmanager
    def under(self, profile: dict[str, str]) -> Iterator[Stores]:
        """Give the stores as a process has them whose user has this profile, as far as the server knows it."""
        known = self.stores.client.driver.server_settings
        self.proxy.profile = {name: value for name, value in profile.items() if name in known}
        settings = through(self.proxy, self.stores.settings)
        client = open_client(settings)
        try:
            yield replace(self.stores, client=client, settings=settings)
        finally:
            client.close()


def deliver_and_compare(stores: Stores, truth: Stores) -> None:
    """Deliver events, send them again, and find the same on both sides, as seen by the profile and past it."""
    publish(stores.engine, 40)
    relay(stores, until_empty=True)
    # The rows of a generation that was replaced are deleted ones.
    batch = batches_of_days(stores.engine, ALL_DAYS.first_day, ALL_DAYS.last_day)[-1]
    replayed = [*replay(stores, [batch], reload=True), *replay(stores, [batch])]

    assert [each.outcome for each in replayed] == [Outcome.REDELIVERED, Outcome.PROVEN]
    assert_each_exactly_once(truth.engine, truth.client)
    assert reconcile(stores, by_type=True).is_clean
    assert record_completeness(stores).days
    # What was kept of an answer would still be given.
    truth.client.run(
        "DELETE FROM {table:Identifier} WHERE batch_id = {batch_id:UUID} AND position % 2 = 0",
        {"batch_id": str(batch.batch_id)},
    )
    (repaired,) = replay(stores, [batch])
    assert repaired.outcome == Outcome.REDELIVERED
    assert_each_exactly_once(truth.engine, truth.client)


@pytest.fixture(scope="module")
def walk(servers: Servers, migrated_template: str) -> Iterator[Walk]:
    """One database on each side for the whole walk."""
    with fresh_database(servers, template=migrated_template) as database, fresh_clickhouse(servers) as clickhouse_url:
        owner = create_engine(url_of(servers, database))
        with owner.begin() as connection:
            connection.execute(OWN_IDENTITY)
        owner.dispose()
        settings = Settings(
            postgres_url=SecretStr(url_of(servers, database)),
            clickhouse_url=SecretStr(clickhouse_url),
            retry_base_seconds=0.1,
        )
        client, engine, proxy = open_client(settings), create_outbox_engine(settings), ProfileProxy.to(clickhouse_url)
        migrate_log(client)
        yield Walk(Stores(engine, client, settings), proxy)
        client.close()
        engine.dispose()
        proxy.close()


@pytest.fixture(scope="module")
def own_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An engine whose only user has at once all that a profile may set without keeping the engine from starting."""
    profile = {name: value for step in SETTINGS.values() for name, value in step.items() if name not in _OF_A_START}
    with engine_under(tmp_path_factory.mktemp("profile"), profile) as url:
        yield url


def test_a_profile_of_everything_reaches_no_statement_of_ours(
    own_engine: str, outbox_engine: Engine, settings: Settings
) -> None:
    """A real profile that sets all of it changes nothing, the making of the log and the driver's questions included."""
    here = settings.model_copy(update={"clickhouse_url": SecretStr(own_engine)})
    with clickhouse_client(here) as client:
        migrate_log(client)
        stores = Stores(outbox_engine, client, here)

        deliver_and_compare(stores, stores)


@pytest.mark.parametrize("step", SETTINGS)
def test_what_a_profile_sets_reaches_no_statement_of_ours(walk: Walk, step: str) -> None:
    """Whatever requests begin with, events arrive once, are proved, deleted and sent again, and both sides agree."""
    with walk.under(SETTINGS[step]) as stores:
        deliver_and_compare(stores, walk.stores)


def test_a_persons_own_query_runs_under_the_profile(walk: Walk) -> None:
    """As with any client, while statements of ours do not."""
    zone = {"session_timezone": "Pacific/Auckland"}
    with walk.under(zone) as stores, clickhouse_client(stores.settings, under_profile=True) as asking:
        found = [client.rows("SELECT timezone() AS zone")[0]["zone"] for client in (asking, stores.client)]

    assert found == ["Pacific/Auckland", "UTC"]


def test_every_setting_of_the_list_is_walked_over() -> None:
    """A setting that is added to the list is tried with another value."""
    assert {*STATEMENT, *BATCH_INSERT} <= {name for step in SETTINGS.values() for name in step}


def test_the_list_means_what_it_says(walk: Walk) -> None:
    """ClickHouse knows each setting of the list under its name, and has it as it is written there."""
    names = list(STATEMENT)
    rows = walk.stores.client.rows(
        "SELECT name, value, is_obsolete FROM system.settings WHERE name IN {names:Array(String)}", {"names": names}
    )

    assert {row["name"]: row["value"] for row in rows} == STATEMENT
    assert [row["name"] for row in rows if row["is_obsolete"]] == []
