"""The trace an event belongs to, read from what the application uses already; nothing is imported for it.

The text is OpenTelemetry's current span as a W3C `traceparent`; without a span, the correlation id or request id that
structlog's context variables hold, as `correlation_id=…` or `request_id=…`.

Invariant: looking never fails a publish. An id that is no short plain text is left out.
"""

import re
import sys
from typing import Any

#: Names looked for among structlog's context variables, the first one wins.
CORRELATION_NAMES = ("correlation_id", "request_id")

_ID = re.compile(r"[!-~]{1,200}")


def current_trace() -> str | None:
    """Return the trace context of the code that is running, None when there is none."""
    return _traceparent() or _correlation()


def _traceparent() -> str | None:
    # https://www.w3.org/TR/trace-context/#traceparent-header
    opentelemetry: Any = sys.modules.get("opentelemetry.trace")
    if opentelemetry is None:
        return None
    span = opentelemetry.get_current_span().get_span_context()
    if not span.is_valid:
        return None
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def _correlation() -> str | None:
    contextvars: Any = sys.modules.get("structlog.contextvars")
    if contextvars is None:
        return None
    variables = contextvars.get_contextvars()
    for name in CORRELATION_NAMES:
        value = variables.get(name)
        if value is not None and _ID.fullmatch(str(value)):
            return f"{name}={value}"
    return None
