"""Publish events in your own PostgreSQL transaction; find each of them in ClickHouse exactly once.

Names are imported on first use, so that importing the package costs next to nothing, and only what publishing needs:
Dagster, pandas, Arrow and the ClickHouse client never come with them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outbox_pipeline.errors import NoTransactionError, PublishError
    from outbox_pipeline.events import Event
    from outbox_pipeline.ids import EventId
    from outbox_pipeline.publish import (
        not_published_count,
        publish_event,
        publish_event_async,
        publish_events,
        publish_events_async,
        publishes,
    )

__all__ = [
    "Event",
    "EventId",
    "NoTransactionError",
    "PublishError",
    "not_published_count",
    "publish_event",
    "publish_event_async",
    "publish_events",
    "publish_events_async",
    "publishes",
]

_HOMES = {
    "Event": "events",
    "EventId": "ids",
    "NoTransactionError": "errors",
    "PublishError": "errors",
    "not_published_count": "publish",
    "publish_event": "publish",
    "publish_event_async": "publish",
    "publish_events": "publish",
    "publish_events_async": "publish",
    "publishes": "publish",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
