"""What the two assets are called and to whom they belong.

`postgres/outbox` is described in `health.py`, `event_log` in `delivery/event_log.py`.
"""

import dagster as dg

from outbox_pipeline.settings import load_settings

OUTBOX_KEY = dg.AssetKey(["postgres", "outbox"])
EVENT_LOG = dg.AssetKey("event_log")
GROUP = "outbox"

#: Only the deployer knows them; none unless OUTBOX_OWNERS is set.
OWNERS = list(load_settings().owners or ())
