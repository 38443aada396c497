"""Log lines have names from a closed set, and an application without structlog gets them through logging."""

import ast
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

import outbox_pipeline
from outbox_pipeline.logs import EVENTS, application_log, configure_logs, log
from outbox_pipeline.settings import Settings

PACKAGE = Path(outbox_pipeline.__file__).parent


def logged_names() -> Iterator[str]:
    """Yield each name that is given to a logger as a literal."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("log().info", "log().warning")):
                yield from (value.value for value in node.args[:1] if isinstance(value, ast.Constant))


def test_names_are_a_closed_set() -> None:
    """Every line that is written has a name that is listed."""
    names = set(logged_names())

    assert {"event_not_published", "event_repeated"} <= names
    assert names <= EVENTS


def test_standard_logging_is_used_without_structlog(caplog: pytest.LogCaptureFixture) -> None:
    """An application that has not configured structlog finds the lines where all its others are."""
    structlog.reset_defaults()

    with caplog.at_level(logging.INFO, logger="outbox_pipeline"):
        application_log().warning("event_not_published", event_type="t", count=1, sqlstate=None)
        application_log().info("event_repeated", count=2)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "event_not_published event_type='t' count=1"),
        ("INFO", "event_repeated count=2"),
    ]


def test_a_console_line_is_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    """Names that producers chose are shown as escapes on the console, and so are they in JSON."""
    evil = "\x1b[31mRED\x9b\u202e"
    for log_format in ("console", "json"):
        configure_logs(Settings(log_format=log_format))  # type: ignore[arg-type]  # one of the two
        log().info("event_repeated", event_type=evil)
    structlog.reset_defaults()

    console, as_json = capsys.readouterr().err.splitlines()
    assert console.endswith("event_type=\\x1b[31mRED\\x9b\\u202e")
    assert as_json.isprintable()
    assert json.loads(as_json)["event_type"] == evil
