"""Days and times as words of a command line or of a run's config.

Invariant: a word that is refused is named by where it was given and not quoted, since it may be anything.
"""

from datetime import UTC, date, datetime

from outbox_pipeline.errors import UsageError


def parse_day(word: str, name: str) -> date:
    """Return a UTC day. Raises UsageError that says *name* when the word is none."""
    try:
        return date.fromisoformat(word.strip())
    except ValueError:
        raise UsageError(f"What is given as {name} is no day: write it like 2026-03-01.") from None


def parse_time(word: str, name: str) -> datetime:
    """Return an ISO 8601 date or time; UTC unless it says otherwise. Raises UsageError that says *name*."""
    try:
        found = datetime.fromisoformat(word.strip())
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"What is given as {name} is no time: write a UTC date or time such as 2026-03-01 or 2026-03-01T14:30."
        ) from None
