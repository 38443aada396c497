"""Publish events from Django, in the transaction of `transaction.atomic`; an app with migrations and admin pages.

`"outbox_pipeline.django"` in INSTALLED_APPS brings the schema with `manage.py migrate` and shows events and quarantine
in the admin, read only. Nothing here delivers.

Invariant: the one room for Django; nothing else in this package imports it, and importing this needs no settings.
"""

from outbox_pipeline.django.decorator import publishes
from outbox_pipeline.django.publish import publish_event, publish_events

__all__ = ["publish_event", "publish_events", "publishes"]
