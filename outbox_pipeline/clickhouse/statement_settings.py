"""What a statement of ours depends on in ClickHouse: the one list for all of them, and what a batch's insert adds.

Invariant: nothing that changes what a statement of ours means, sees or returns comes from the profile of its user, the
driver's own first questions included. Each request carries the whole list, because a profile may change while a client
is open. Every version that is promised knows each setting of `STATEMENT`, which is sent before the version is known; of
`BATCH_INSERT` a client leaves out what its server does not know.

Not here: how much memory and how many threads a statement may have, what only makes it slower or faster, and what the
user may not do at all (`readonly`, `allow_ddl`). Those are for the server's operator to say.
"""

from typing import Final

#: Which rows a statement sees: all that are there now and were not deleted, read by the server that is asked.
_ROWS: Final = {
    "use_query_cache": "0",
    # What it remembers of granules without a match has outlived changes of a table, in more than one version.
    "use_query_condition_cache": "0",
    "final": "0",
    "apply_deleted_mask": "1",
    "apply_patch_parts": "1",
    "additional_table_filters": "{}",
    "additional_result_filter": "",
    "limit": "0",
    "offset": "0",
    "enable_parallel_replicas": "0",
}

#: What ends a statement early, some with an error and some with a part of the answer: 0 is no limit.
_LIMITS: Final = dict.fromkeys(
    (
        "max_rows_to_read",
        "max_bytes_to_read",
        "max_rows_to_read_leaf",
        "max_bytes_to_read_leaf",
        "max_result_rows",
        "max_result_bytes",
        "max_execution_time",
        "max_estimated_execution_time",
        "min_execution_speed",
        "min_execution_speed_bytes",
        "max_rows_to_group_by",
        "max_rows_to_sort",
        "max_bytes_to_sort",
        "max_rows_in_distinct",
        "max_bytes_in_distinct",
        "max_rows_in_set",
        "max_bytes_in_set",
        "max_columns_to_read",
        "max_temporary_columns",
        "max_temporary_non_const_columns",
    ),
    "0",
) | {"max_partitions_to_read": "-1"}

#: What refuses a statement that reads without an index or a projection. `force_data_skipping_indices` has no value that
#: asks for none.
_DEMANDS: Final = {
    "force_index_by_date": "0",
    "force_primary_key": "0",
    "force_optimize_projection": "0",
    "force_optimize_projection_name": "",
}

#: What functions and types in our statements mean, and how an answer is written for the driver.
_MEANING: Final = {
    "session_timezone": "UTC",
    # A sum over no rows is 0: the fence's NULL would let an insert pass over every row.
    "aggregate_functions_null_for_empty": "0",
    "empty_result_for_aggregation_by_empty_set": "0",
    "data_type_default_nullable": "0",
    "output_format_native_encode_types_in_binary_format": "0",
}

#: What an insert does before it is answered.
_INSERTS: Final = {
    "async_insert": "0",
    # A view that fails fails the insert, and a repeated one reaches the views that remember its token.
    "materialized_views_ignore_errors": "0",
    "deduplicate_blocks_in_dependent_materialized_views": "1",
}

#: A delete is answered when its rows are gone.
_DELETES: Final = {
    "enable_lightweight_delete": "1",
    "lightweight_delete_mode": "alter_update",
    "lightweight_deletes_sync": "2",
    "mutations_sync": "2",
}

#: Sent with every request of ours.
STATEMENT: Final = {**_ROWS, **_LIMITS, **_DEMANDS, **_MEANING, **_INSERTS, **_DELETES}

#: One block whatever the size: blocks commit one by one, so half a batch could stay behind.
ONE_BLOCK_ROWS: Final = 4_000_000

#: What the insert of a batch adds to it.
BATCH_INSERT: Final = {
    "deduplicate_insert": "enable",
    "insert_deduplicate": 1,
    # 26.1 forgets the token of an INSERT … SELECT otherwise.
    "deduplicate_insert_select": "enable_even_for_bad_queries",
    # Side by side, a view that fails leaves any part of the batch in the log; in turn, the log is whole before a view.
    "parallel_view_processing": 0,
    "max_insert_threads": 1,
    "max_insert_block_size": ONE_BLOCK_ROWS,
    "min_insert_block_size_rows": ONE_BLOCK_ROWS,
    "min_insert_block_size_bytes": 0,
    "max_partitions_per_insert_block": 0,
}
