"""Counts in sentences."""

import pytest

from outbox_pipeline.counts import counted


@pytest.mark.parametrize(
    ("count", "noun", "plural", "said"),
    [
        (0, "event", "", "0 events"),
        (1, "event", "", "1 event"),
        (1_000, "event", "", "1,000 events"),
        (1, "batch", "batches", "1 batch"),
        (2, "batch", "batches", "2 batches"),
    ],
)
def test_one_is_singular(count: int, noun: str, plural: str, said: str) -> None:
    """A number of one has its noun without an s; large numbers have separators."""
    assert counted(count, noun, plural) == said
