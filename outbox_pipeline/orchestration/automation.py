"""Which sensors and schedules somebody has switched off under *Automation*; all of them are on by default."""

from collections.abc import Collection

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorStatus

from outbox_pipeline.monitoring.health import Answer
from outbox_pipeline.orchestration.host.instance import LOCATION_NAME
from outbox_pipeline.settings import Settings

#: Without it nothing is delivered.
_DELIVERS = "outbox_sensor"
#: It has nothing to do without OUTBOX_ALERT_WEBHOOK_URL.
_ALERTS = "alert_sensor"


def switched_off(instance: dg.DagsterInstance, settings: Settings) -> list[str]:
    """Return the names of this code location's sensors and schedules that are off and have something to do."""
    stopped = {
        state.instigator_name
        for state in instance.all_instigator_state(instigator_statuses={InstigatorStatus.STOPPED})
        if state.origin.repository_origin.code_location_origin.location_name == LOCATION_NAME
    }
    return sorted(stopped - ({_ALERTS} if settings.alert_webhook_url is None else set()))


def stops_delivery(names: Collection[str]) -> bool:
    """Tell whether one of them is what starts the deliveries."""
    return _DELIVERS in names


def judge_automation(names: Collection[str]) -> Answer:
    """Tell whether everything is on; the cause is what is off."""
    if not names:
        return Answer(True, "Every sensor and schedule is on.")
    named = ", ".join(names)
    meanwhile = " Nothing is delivered meanwhile." if stops_delivery(names) else ""
    return Answer(False, f"Switched off: {named}.{meanwhile} Switch it on again under Automation.", named)
