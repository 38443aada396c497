"""The job that delivers one batch, or proves one day."""

import dagster as dg

from outbox_pipeline.orchestration.assets import event_log
from outbox_pipeline.orchestration.quarantine import quarantine_empty

#: Longest a run may take in seconds. A run whose code server was killed would otherwise count as started for ever.
MAX_RUNTIME_SECONDS = 3600

deliver_batch = dg.define_asset_job(
    "deliver_batch",
    # The quarantine's check has a sensor of its own; a delivery must not pay for it.
    selection=dg.AssetSelection.assets(event_log) - dg.AssetSelection.checks(quarantine_empty),
    description=(
        "Extract, validate, load and mark one batch of events. outbox_sensor starts it; started by hand without a "
        "batch id it proves the chosen day."
    ),
    run_tags={"dagster/max_runtime": str(MAX_RUNTIME_SECONDS)},
)
