"""The sensor that keeps the table `event_log_completeness` in ClickHouse fresh: how far each day is delivered.

It starts no runs and nothing waits for it; while it is off or fails, the table is old and says so by `written_at`.
"""

import dagster as dg

from outbox_pipeline.errors import OutboxError, first_line
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.orchestration.resources import PipelineResource

_INTERVAL_SECONDS = 60


@dg.sensor(
    minimum_interval_seconds=_INTERVAL_SECONDS - 1,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Writes into ClickHouse, once a minute, up to when each day is delivered: the view event_log_delivered answers "
        "'is yesterday whole?' where the analysts are. Starts no runs; a tick that says what is wrong holds no "
        "delivery up."
    ),
)
def completeness_sensor(pipeline: PipelineResource) -> dg.SensorResult:
    """Write what is new; what keeps it from that is the tick's skip reason."""
    try:
        return dg.SensorResult(skip_reason=f"Recorded: {record_completeness(pipeline.stores).summary()}.")
    except OutboxError as error:
        return dg.SensorResult(skip_reason=f"Not recorded: {first_line(error)}")
