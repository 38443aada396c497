"""What `outbox up` shows while it starts."""

import re

import pytest

from outbox_pipeline.cli.support.starting import starting


def test_a_pipe_gets_a_line_for_each_part_that_is_up(capsys: pytest.CaptureFixture[str]) -> None:
    """With the seconds since the start, on stderr; what is to come is in the first line."""
    with starting(["PostgreSQL", "UI"]) as tell:
        tell("PostgreSQL")
        tell("UI")
    told = capsys.readouterr()

    assert told.out == ""
    assert re.sub(r"\d+\.\d", "0.0", told.err).splitlines() == [
        "Starting PostgreSQL, UI …",
        "PostgreSQL is up after 0.0 s.",
        "UI is up after 0.0 s.",
    ]
