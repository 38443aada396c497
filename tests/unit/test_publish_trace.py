"""The trace of an event comes from what the application uses: OpenTelemetry's span, structlog's context variables."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from structlog.contextvars import bound_contextvars, clear_contextvars

from outbox_pipeline.events import prepare_event
from outbox_pipeline.publish.fields import current_trace

TRACER = TracerProvider().get_tracer("tests")


@pytest.fixture(autouse=True)
def _no_context() -> Iterator[None]:
    clear_contextvars()
    yield
    clear_contextvars()


def test_span_is_a_traceparent() -> None:
    """The current span as W3C writes it: version, trace, span, flags."""
    with TRACER.start_as_current_span("checkout") as span, bound_contextvars(correlation_id="other"):
        context = span.get_span_context()

        assert current_trace() == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert current_trace() is None


@pytest.mark.parametrize(
    ("variables", "trace"),
    [
        ({}, None),
        ({"user": "ada"}, None),
        ({"correlation_id": "c-1"}, "correlation_id=c-1"),
        ({"request_id": "r-1"}, "request_id=r-1"),
        ({"request_id": "r-1", "correlation_id": "c-1"}, "correlation_id=c-1"),
        ({"request_id": 7}, "request_id=7"),
        ({"correlation_id": None}, None),
        ({"correlation_id": "a\0b", "request_id": "r-1"}, "request_id=r-1"),
        ({"correlation_id": "\ud800"}, None),
        ({"correlation_id": "x" * 201}, None),
        ({"correlation_id": ""}, None),
    ],
)
def test_without_a_span_the_correlation_id_is_kept(variables: dict[str, Any], trace: str | None) -> None:
    """Short plain ids only: whatever a middleware put there never fails a publish."""
    with bound_contextvars(**variables):
        assert current_trace() == trace


def test_absent_libraries_are_not_missed() -> None:
    """Looking imports nothing."""
    program = (
        "import sys; from outbox_pipeline.publish.fields import current_trace; print(current_trace(),"
        " any(name.startswith(('opentelemetry', 'structlog')) for name in sys.modules))"
    )

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert said.stdout.split() == ["None", "False"]


def test_what_is_found_is_never_too_long_to_publish() -> None:
    """No trace that nobody asked for fails a business transaction."""
    with bound_contextvars(correlation_id="x" * 200):
        found = current_trace()

    assert found is not None
    assert len(found) == 215
    assert prepare_event({}, event_type="t", trace_context=found).trace_context == found
