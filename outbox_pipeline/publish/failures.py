"""What becomes of an event that best effort gave up: a log line and a number, never its content."""

from threading import Lock

from outbox_pipeline.errors import PublishError
from outbox_pipeline.logs import application_log

_lock = Lock()
_counted = 0


def not_published_count() -> int:
    """Return how many events this process gave up because they were published with `required=False`."""
    return _counted


def note(error: Exception, event_type: str | None, event_count: int) -> None:
    """Count *event_count* events as given up and log why.

    Of a database's error only class and SQLSTATE are said: its words may quote the context.
    """
    global _counted
    with _lock:
        _counted += event_count
    # SQLAlchemy has the driver's error in `orig`, Django as the cause.
    cause = getattr(error, "orig", None) or error
    application_log().warning(
        "event_not_published",
        event_type=event_type,
        count=event_count,
        error=str(error) if isinstance(error, PublishError) else type(cause).__name__,
        sqlstate=getattr(cause, "sqlstate", None) or _sqlstate_of(cause.__cause__),
    )


def _sqlstate_of(cause: BaseException | None) -> str | None:
    # psycopg2 calls it pgcode.
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
