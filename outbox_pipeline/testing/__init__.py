"""Tells an application's own tests which events they have published.

For pytest it is a plugin that pytest finds by itself, with the fixture `outbox`; for unittest and Django's own runner
there is `OutboxTestMixin`. Every pytest run loads this, so it imports next to nothing, and pytest only where it is
installed.
"""

from importlib.util import find_spec

from outbox_pipeline.testing.mixin import OutboxTestMixin
from outbox_pipeline.testing.recorder import Outbox, PublishedEvent

if find_spec("pytest"):
    from outbox_pipeline.testing.plugin import outbox as outbox

__all__ = ["Outbox", "OutboxTestMixin", "PublishedEvent"]
