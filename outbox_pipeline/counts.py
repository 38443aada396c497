"""Counts in sentences for people. Imports nothing, so that every floor may use it."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun, `1 event` or `1,000 events`; *plural* where an s is not enough."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
