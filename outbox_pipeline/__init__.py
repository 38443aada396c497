"""Publish events in your own PostgreSQL transaction; find each of them in ClickHouse exactly once.

Only what an application needs to publish is imported here; Dagster, pandas, Arrow and the ClickHouse client are not.
"""

from outbox_pipeline.errors import NoTransactionError, PublishError
from outbox_pipeline.events import Event
from outbox_pipeline.publish import publish_event, publish_events

__all__ = ["Event", "NoTransactionError", "PublishError", "publish_event", "publish_events"]
