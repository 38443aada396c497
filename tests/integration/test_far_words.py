"""Ids, numbers, days, times and texts as far out as they can be written: each command does what it says, or refuses."""

import pytest

from outbox_pipeline.stores import Stores
from tests.fixtures.commands import Outbox, run_outbox
from tests.fixtures.events import publish

#: As Python hands a byte on that is not UTF-8.
LATIN = "caf\udce9"

BEYOND = str(2**63)

#: What is asked, and how the command ends.
WORDS = [
    (["replay", "--from", "0001-01-01", "--to", "9999-12-31", "--dry-run"], 0),
    (["reconcile", "--from", "0001-01-01", "--to", "9999-12-31"], 0),
    (["reconcile", "--from", "9999-12-31", "--to", "9999-12-31", "--by-type"], 0),
    (["reconcile", "--from", "1900-01-01", "--to", "1969-12-31"], 0),
    (["delivered", "--from", "0001-01-01", "--to", "9999-12-31"], 0),
    (["delivered", "--from", "2150-01-01", "--to", "9999-12-31"], 0),
    (["quarantine", "list", "--since", "0001-01-01", "--until", "9999-12-31T23:59:59.999999"], 0),
    (["quarantine", "list", "--since", "0001-01-01T00:00:00+14:00"], 2),
    (["quarantine", "list", "--until", "9999-12-31T23:00:00-12:00"], 2),
    (["quarantine", "list", "--since", "294276-12-31"], 2),
    (["quarantine", "show", BEYOND], 2),
    (["quarantine", "requeue", BEYOND], 2),
    (["trace", "00000000-0000-0000-0000-000000000000"], 1),
    (["trace", "ffffffff-ffff-ffff-ffff-ffffffffffff"], 1),
    (["prune", "--dry-run"], 0),
]


def test_a_command_bears_the_farthest_days_times_and_ids(outbox: Outbox, stores: Stores) -> None:
    """None ends in a traceback, whether something is there or not."""
    publish(stores.engine, 1)

    ends = [(words, outbox(*words)) for words, _ in WORDS]

    assert [(words, result.exit_code) for words, result in ends] == WORDS
    assert [words for words, result in ends if not isinstance(result.exception, SystemExit | None)] == []


@pytest.mark.parametrize(
    "words",
    [
        ["sql", f"SELECT '{LATIN}'"],
        ["sql", "SELECT 1", "--format", LATIN],
        ["replay", "--type", LATIN],
        ["quarantine", "list", "--type", LATIN],
        ["quarantine", "requeue", "--reason", LATIN],
        ["quarantine", "discard", "--note", LATIN],
    ],
    ids=["query", "format", "replay", "list", "requeue", "discard"],
)
def test_a_text_that_is_not_utf_8_is_wrong_use(words: list[str]) -> None:
    """It is refused before a server is asked, which could not take it."""
    result = run_outbox(*words)

    assert result.exit_code == 2
    assert "UTF-8" in result.output


@pytest.mark.parametrize("limit", ["0", "1000001", BEYOND])
def test_a_list_has_a_length_that_can_be_shown(limit: str) -> None:
    """More than a million is refused, and so is what PostgreSQL has no number for."""
    assert run_outbox("quarantine", "list", "--limit", limit).exit_code == 2
