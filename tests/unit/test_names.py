"""Names from events are cut wherever they are put before people: a batch's metadata is no place for 16 MB."""

from datetime import date
from typing import Any

import pytest

from outbox_pipeline.days import Window
from outbox_pipeline.names import shortened
from outbox_pipeline.operations.reconcile.findings import Reconciled, TypeTotals
from outbox_pipeline.orchestration.delivery.report import of_validate
from outbox_pipeline.orchestration.reconcile import of_reconciled
from outbox_pipeline.relay.results import Validated

DAY = date(2026, 11, 28)
LONG = "x" * 16_000_000


@pytest.mark.parametrize(
    ("name", "expected"), [("order_placed", "order_placed"), ("ä" * 200, "ä" * 200), ("ä" * 201, "ä" * 199 + "…")]
)
def test_a_long_name_is_cut_to_200_characters(name: str, expected: str) -> None:
    """The ellipsis says that there is more, and counts."""
    assert shortened(name) == expected


def types_in(entry: Any) -> list[str]:
    """Return the event types of a table in a run's metadata."""
    return [record.data["event_type"] for record in entry.records]


def test_metadata_of_a_batch_shows_the_beginning_of_a_type() -> None:
    """What an event is called cannot fill Dagster's database."""
    shown = of_validate(Validated(2, {}, {LONG: 1, "order_placed": 1}, was_frozen=False))

    assert types_in(shown["event_types"]) == [shortened(LONG), "order_placed"]


def test_metadata_of_a_comparison_shows_the_beginning_of_a_type() -> None:
    """As of a batch."""
    found = Reconciled(Window(DAY, DAY), types=(TypeTotals(DAY, LONG, 2, 1),))

    assert types_in(of_reconciled(found, None)["types_differing"]) == [shortened(LONG)]
