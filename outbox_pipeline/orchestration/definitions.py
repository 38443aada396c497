"""Everything Dagster loads: the code location `outbox_pipeline`."""

import dagster as dg

from outbox_pipeline.orchestration.alerts import alert_sensor
from outbox_pipeline.orchestration.completeness import completeness_sensor
from outbox_pipeline.orchestration.delivery.event_log import deliver_batch, event_log
from outbox_pipeline.orchestration.delivery.outbox_sensor import outbox_sensor
from outbox_pipeline.orchestration.health import OUTBOX, health_checks, health_sensor
from outbox_pipeline.orchestration.quarantine import (
    discard_quarantined,
    quarantine_empty,
    requeue_quarantined,
)
from outbox_pipeline.orchestration.recheck import recheck_batches, recheck_sensor
from outbox_pipeline.orchestration.reconcile import reconcile_daily, reconcile_days, reconciled
from outbox_pipeline.orchestration.resources import PipelineResource, nothing_kept
from outbox_pipeline.orchestration.resume import resume_parked_batches
from outbox_pipeline.orchestration.retention import (
    prune_dagster_history,
    prune_hourly,
    prune_outbox,
    purge_history_daily,
)


def build_definitions() -> dg.Definitions:
    """Assemble the definitions."""
    return dg.Definitions(
        assets=[OUTBOX, event_log],
        asset_checks=[quarantine_empty, reconciled, *health_checks],
        jobs=[
            deliver_batch,
            resume_parked_batches,
            requeue_quarantined,
            discard_quarantined,
            recheck_batches,
            prune_outbox,
            prune_dagster_history,
            reconcile_days,
        ],
        schedules=[prune_hourly, purge_history_daily, reconcile_daily],
        sensors=[outbox_sensor, health_sensor, recheck_sensor, completeness_sensor, alert_sensor],
        resources={"pipeline": PipelineResource(), "io_manager": nothing_kept},
        # Also for backfills, which run under Dagster's own asset job: one process, under a second for the op graph.
        executor=dg.in_process_executor,
    )


defs = build_definitions()
