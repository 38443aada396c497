"""The asset `event_log`: the ClickHouse table, one partition a day, made by the op graph of a delivery."""

import warnings
from typing import Any

import dagster as dg

from outbox_pipeline.orchestration.ops import (
    DELIVERED_WHOLE,
    EVENT_LOG,
    extract_batch,
    load_batch,
    mark_processed,
    validate_batch,
)
from outbox_pipeline.orchestration.partitions import recorded_days
from outbox_pipeline.orchestration.runs import DeliveryConfig

OUTBOX = dg.AssetSpec(
    ["postgres", "outbox"],
    description="Table outbox.event in PostgreSQL, where applications publish in their own transactions.",
    group_name="outbox",
    kinds={"postgres"},
)


def _delivered_whole() -> dg.AssetCheckSpec:
    with warnings.catch_warnings():
        # A preview in Dagster 1.13. Without it the check of each day would be shown as planned for ever.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            DELIVERED_WHOLE,
            asset=EVENT_LOG,
            partitions_def=recorded_days,
            blocking=True,
            description=(
                "ClickHouse shows exactly the rows the ledger expects: counts, ids, positions, times and contents."
            ),
        )


@dg.config_mapping
def one_config_for_all_ops(value: DeliveryConfig) -> dict[str, Any]:
    """Give each op of the graph the run's one config."""
    config = value.model_dump()
    return {op.name: {"config": config} for op in (extract_batch, validate_batch, load_batch, mark_processed)}


@dg.graph_asset(
    name=EVENT_LOG.path[-1],
    description=(
        "Events in ClickHouse, each exactly once. A run delivers one batch (started by outbox_sensor), or without a "
        "batch id proves its whole day and repairs what differs (the backfill page). Plots → Events shows rows, "
        "lag and speed of each batch; the day's colour is its latest run."
    ),
    partitions_def=recorded_days,
    config=one_config_for_all_ops,
    ins={"outbox": dg.AssetIn(key=OUTBOX.key, dagster_type=dg.Nothing)},
    check_specs=[_delivered_whole()],
    group_name="outbox",
    kinds={"clickhouse", "pandas"},
)
def event_log(outbox: Any) -> Any:
    """Wire the four ops; only their order passes between them."""
    proven = load_batch(after=validate_batch(after=extract_batch(outbox=outbox)))
    return {"result": mark_processed(after=proven), f"{EVENT_LOG.to_python_identifier()}_{DELIVERED_WHOLE}": proven}
