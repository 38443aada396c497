"""The asset `event_log`: the ClickHouse table, one partition a day, made by the steps of a delivery, and its job."""

import warnings
from datetime import timedelta
from typing import Any

import dagster as dg

from outbox_pipeline.clickhouse.table import COLUMNS, column_comments
from outbox_pipeline.orchestration.assets import EVENT_LOG, GROUP, OUTBOX_KEY, OWNERS
from outbox_pipeline.orchestration.delivery.run import DeliveryConfig
from outbox_pipeline.orchestration.delivery.steps import (
    DELIVERED_WHOLE,
    extract_batch,
    load_batch,
    mark_processed,
    validate_batch,
)
from outbox_pipeline.orchestration.partitions import recorded_days
from outbox_pipeline.orchestration.reconcile import reconciled
from outbox_pipeline.orchestration.run_config import literal_schema
from outbox_pipeline.orchestration.run_limits import DELIVERY_SECONDS
from outbox_pipeline.orchestration.run_tags import max_runtime
from outbox_pipeline.orchestration.shared_settings import settings_tag
from outbox_pipeline.settings import load_settings

_RUNBOOK = """
| question | answer |
|---|---|
| Is a day whole? | *Materialize* its partition: each batch is proved, and repaired where ClickHouse differs |
| A run failed? | Its batch is tried again by itself; the sentence of the failed step says what is wrong |
| Batches are parked? | Fix what `outbox status` shows as last error, then run `resume_parked_batches` |
| Is anything late, held back or refused? | the checks of `postgres/outbox` |
| Events are held? | `outbox quarantine list`, then `requeue_quarantined` or `discard_quarantined` |
| Is everything set up right? | `outbox doctor` |
"""


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


def _table_metadata() -> dict[str, Any]:
    meaning = column_comments()
    columns = [dg.TableColumn(name, type=kind, description=meaning.get(name)) for name, kind in COLUMNS.items()]
    return {
        "dagster/table_name": load_settings().clickhouse_table,
        "dagster/column_schema": dg.TableSchema(columns),
        "runbook": dg.MetadataValue.md(_RUNBOOK),
    }


def _with_freshness(spec: dg.AssetSpec) -> dg.AssetSpec:
    # Dagster's freshness counts deliveries: without this setting a quiet night would turn the asset red for nothing.
    hours = load_settings().freshness_hours
    if hours is None:
        return spec
    within = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=hours))
    fresh: dg.AssetSpec = dg.apply_freshness_policy(spec, within)
    return fresh


@dg.config_mapping(config_schema=literal_schema(DeliveryConfig))
def one_config_for_all_ops(config: dict[str, Any]) -> dict[str, Any]:
    """Give each op of the graph the run's one config."""
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
    ins={"outbox": dg.AssetIn(key=OUTBOX_KEY, dagster_type=dg.Nothing)},
    check_specs=[_delivered_whole()],
    group_name=GROUP,
    kinds={"clickhouse", "pandas"},
    owners=OWNERS,
    metadata=_table_metadata(),
)
def _event_log(outbox: Any) -> Any:
    """Wire the four ops; only their order passes between them."""
    proven = load_batch(after=validate_batch(after=extract_batch(outbox=outbox)))
    return {"result": mark_processed(after=proven), f"{EVENT_LOG.to_python_identifier()}_{DELIVERED_WHOLE}": proven}


event_log = _event_log.map_asset_specs(_with_freshness)

deliver_batch = dg.define_asset_job(
    "deliver_batch",
    # This check has a job of its own; a delivery must not pay for it.
    selection=dg.AssetSelection.assets(event_log) - dg.AssetSelection.checks(reconciled),
    description=(
        "Extract, validate, load and mark one batch of events. outbox_sensor starts it; started by hand without a "
        "batch id it proves the chosen day."
    ),
    run_tags=max_runtime(DELIVERY_SECONDS) | settings_tag(load_settings()),
)
