"""Log lines with names and ids, never with event contexts, and never with what a terminal would obey.

The names are a closed set, listed in `EVENTS`; a line with another name is a defect that a test finds.
The pipeline logs with structlog. An application that publishes may not have it, so it is loaded on first use.
"""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Protocol

from outbox_pipeline.settings import Settings

#: Every name a log line may have.
EVENTS = frozenset(
    {
        "batch_cut",
        "batch_failed",
        "batch_loaded",
        "batch_parked",
        "batch_processed",
        "batch_pruned",
        "witness_pruned",
        "batch_requested",
        "batch_resent",
        "batch_split",
        "clickhouse_unreachable",
        "dagster_tables_made",
        "dagster_tables_not_made",
        "event_not_published",
        "event_repeated",
        "event_replaced",
        "events_discarded",
        "events_requeued",
        "failure_not_written",
        "hidden_events_moved",
        "lease_given_up",
        "lease_not_renewed",
        "ledger_adopted",
        "log_move_waits",
        "log_moved",
        "looked_again",
        "metrics_unavailable",
        "process_killed",
        "process_restarted",
        "prune_refused",
        "strays_put_back",
        "table_taken",
    }
)


class Log(Protocol):
    """What callers use of a logger: a name from `EVENTS` and its ids."""

    def info(self, event: str, **ids: Any) -> None:
        """Log that something happened."""

    def warning(self, event: str, **ids: Any) -> None:
        """Log a warning."""


def log() -> Log:
    """Return the pipeline's logger."""
    import structlog

    logger: Log = structlog.get_logger("outbox_pipeline")
    return logger


def application_log() -> Log:
    """Return the logger for lines in an application's process: structlog where it is configured, else logging.

    It never raises: processors and handlers are the application's, and no call of it may fail over a line about it.
    """
    return _HarmlessLog()


class _HarmlessLog:
    """Hands a line to the application's logging, and drops it where that raises."""

    def info(self, event: str, **ids: Any) -> None:
        """Log that something happened."""
        with suppress(Exception):
            _applications().info(event, **ids)

    def warning(self, event: str, **ids: Any) -> None:
        """Log a warning."""
        with suppress(Exception):
            _applications().warning(event, **ids)


def _applications() -> Log:
    structlog = sys.modules.get("structlog")
    return log() if structlog and structlog.is_configured() else _StandardLog()


class _StandardLog:
    """Writes a line to Python's logger `outbox_pipeline`: the name, then its ids."""

    def info(self, event: str, **ids: Any) -> None:
        """Log that something happened."""
        self._write(logging.INFO, event, ids)

    def warning(self, event: str, **ids: Any) -> None:
        """Log a warning."""
        self._write(logging.WARNING, event, ids)

    def _write(self, level: int, event: str, ids: dict[str, Any]) -> None:
        told = " ".join(f"{name}={value!r}" for name, value in ids.items() if value is not None)
        logging.getLogger("outbox_pipeline").log(level, "%s %s", event, told)


def escaped(text: str, *, besides: str = "") -> str:
    r"""Return *text* with each letter that a terminal might obey, or not show, as an escape like `\x1b`.

    Those are control characters, marks that turn the direction of writing, and odd spaces; *besides* stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in besides else one.encode("unicode_escape").decode("ascii") for one in text
    )


def _escape_values(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> Mapping[str, Any]:
    return {name: escaped(value) if isinstance(value, str) else value for name, value in line.items()}


def configure_logs(settings: Settings) -> None:
    """Write log lines to stderr as OUTBOX_LOG_FORMAT and OUTBOX_LOG_LEVEL say."""
    import structlog

    is_json = settings.log_format == "json"
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if is_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # The names of events are their producers' words; JSON has escapes of its own.
            *([] if is_json else [_escape_values]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.log_level]),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
