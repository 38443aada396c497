"""Publish events in the caller's own transaction.

The one entrance for applications: one function name for sessions that are called, one for those that are awaited. It
never commits, rolls back or opens a transaction beyond what the session begins by itself, and it does not deliver:
the pipeline finds the events once the caller has committed.

Invariant: events and business data share one transaction. So a connection in autocommit is refused unless the caller
says otherwise, and all events of a call are checked before the first is written.

A session's kind is told by its class, never by importing a library: a process with an asyncpg connection has loaded
asyncpg already, and no other process needs it.
"""

from outbox_pipeline.publish.calls import insert_events, publish_event, publish_events
from outbox_pipeline.publish.calls_async import publish_event_async, publish_events_async
from outbox_pipeline.publish.decorator import publishes
from outbox_pipeline.publish.steps import not_published_count

__all__ = [
    "insert_events",
    "not_published_count",
    "publish_event",
    "publish_event_async",
    "publish_events",
    "publish_events_async",
    "publishes",
]
