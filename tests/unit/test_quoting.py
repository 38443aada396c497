"""Lines that people are told to run hold the names of others as data."""

import pytest

from outbox_pipeline.postgres.quoting import quoted_name, quoted_text


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("plain", "'plain'"),
        ("it's; DROP TABLE x; --", "'it''s; DROP TABLE x; --'"),
        ("back\\slash'", "E'back\\\\slash'''"),
        ("line\n\u202e", "E'line\\U0000000A\\U0000202E'"),
    ],
)
def test_a_text_is_a_literal(text: str, literal: str) -> None:
    """Quotes are doubled, and what cannot be seen is an escape that PostgreSQL reads back."""
    assert quoted_text(text) == literal


def test_a_role_is_an_identifier() -> None:
    """A role's name is quoted where it needs that."""
    assert quoted_name("pipeline_1") == "pipeline_1"
    assert quoted_name('Ev"il') == '"Ev""il"'
    assert quoted_name("50%") == '"50%"'
    assert quoted_name("user") == '"user"'
