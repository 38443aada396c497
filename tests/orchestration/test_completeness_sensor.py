"""The sensor that tells analysts how far each day is delivered."""

import dagster as dg

from outbox_pipeline.clickhouse.completeness import read_delivered
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish
from tests.fixtures.sensors import tick_completeness


def test_a_tick_writes_the_days_and_starts_nothing(instance: dg.DagsterInstance, stores: Stores) -> None:
    """Today is there with what is on its way."""
    publish(stores.engine, 2)

    said = tick_completeness(instance, stores)

    assert "1 day written, 1 of them with events on their way" in said
    assert read_delivered(stores.client)[-1].undelivered_count == 2


def test_a_tick_that_cannot_write_says_why(instance: dg.DagsterInstance, stores: Stores) -> None:
    """Without its table the tick is skipped with the sentence that helps, and fails nothing."""
    stores.client.run("DROP TABLE {completeness:Identifier}")

    assert "run 'outbox init'" in tick_completeness(instance, stores)
