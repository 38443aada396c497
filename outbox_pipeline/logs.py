"""Log lines with names and ids, never with event contexts.

The names are a closed set, listed in `EVENTS`; a line with another name is a defect that a test finds.
"""

import logging
import sys
from typing import Any, Protocol

import structlog

from outbox_pipeline.settings import Settings

#: Every name a log line may have.
EVENTS = frozenset(
    {
        "batch_cut",
        "batch_failed",
        "batch_loaded",
        "batch_parked",
        "batch_processed",
        "batch_requested",
        "batch_resent",
        "clickhouse_unreachable",
        "events_discarded",
        "events_requeued",
        "lease_not_renewed",
        "ledger_adopted",
        "metrics_unavailable",
        "process_killed",
        "process_restarted",
    }
)


class Log(Protocol):
    """What callers use of a logger: a name from `EVENTS` and its ids."""

    def info(self, event: str, **ids: Any) -> None:
        """Say that something happened."""

    def warning(self, event: str, **ids: Any) -> None:
        """Say that something needs an eye."""


def log() -> Log:
    """Return the package's logger."""
    logger: Log = structlog.get_logger("outbox_pipeline")
    return logger


def configure_logs(settings: Settings) -> None:
    """Write log lines to stderr as OUTBOX_LOG_FORMAT and OUTBOX_LOG_LEVEL say."""
    is_json = settings.log_format == "json"
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if is_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.log_level]),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
