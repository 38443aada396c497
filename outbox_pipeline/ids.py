"""Identifiers made in Python: UUID version 7, so that new batches and events sort by the time they were made."""

import os
import time
from uuid import UUID

_VERSION_AND_VARIANT = 0x7 << 76 | 0x2 << 62
_RANDOM_BITS = (1 << 80) - 1 & ~(0xF << 76 | 0x3 << 62)


def uuid7() -> UUID:
    """Return a new UUID version 7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80 | random & _RANDOM_BITS | _VERSION_AND_VARIANT
    return UUID(int=value)


class EventId(UUID):
    """The id of a published event: a UUID that also says whether the outbox had the event already.

    A repeat `differs` when the event that the outbox has under this id is of another type, version or context.
    """

    __slots__ = ("differs", "is_repeat")
    is_repeat: bool
    differs: bool

    def __init__(self, event_id: UUID, *, is_repeat: bool, differs: bool = False) -> None:
        """Take the number of *event_id*."""
        # A UUID refuses to be changed, its own way of setting included.
        object.__setattr__(self, "int", event_id.int)
        object.__setattr__(self, "is_safe", event_id.is_safe)
        object.__setattr__(self, "is_repeat", is_repeat)
        object.__setattr__(self, "differs", differs)

    def __reduce__(self) -> tuple[type[UUID], tuple[str]]:
        """Copy and pickle as the plain UUID it is to other code."""
        return UUID, (self.hex,)
