"""What ClickHouse refuses of a batch, or as a table: named, quarantined, and nothing else is held up."""

import re

import pytest
from sqlalchemy import text

from outbox_pipeline.batches import BatchStatus
from outbox_pipeline.clickhouse.table import table_problem
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.relay.attempts import end_failed
from outbox_pipeline.relay.loop import deliver, relay
from outbox_pipeline.stores import Stores
from tests.fixtures.attempts import start
from tests.fixtures.events import assert_each_exactly_once, publish


def test_what_clickhouse_refuses_is_kept_and_named(stores: Stores) -> None:
    """A missing table is a configuration error in one sentence; the batch stays for the next attempt."""
    publish(stores.engine, 3)
    delivery = start(stores)
    stores.client.run("DROP TABLE {table:Identifier}")

    with pytest.raises(ConfigurationError, match="outbox init") as raised:
        deliver(delivery)
    end_failed(delivery, raised.value)

    batch = delivery.batch()
    assert (batch.status, batch.last_error) == (BatchStatus.FAILED, str(raised.value))
    assert re.fullmatch(
        r"ClickHouse at \S+ refuses this: Table \S+ does not exist\. [^.\n]+ run 'outbox init'\.", batch.last_error
    )


def test_events_clickhouse_refuses_are_quarantined(stores: Stores) -> None:
    """A row that ClickHouse's own check refuses is found among the others and held with its words; the rest arrives."""
    publish(stores.engine, 40)
    publish(stores.engine, 1, event_type="poison")
    publish(stores.engine, 40)
    publish(stores.engine, 2, event_type="poison", context='{"card": "4111"}')
    stores.client.run("ALTER TABLE {table:Identifier} ADD CONSTRAINT no_poison CHECK event_type != 'poison'")

    result = relay(stores, until_empty=True)

    with stores.engine.begin() as connection:
        held = connection.execute(text("SELECT position, reasons FROM outbox.quarantined_event ORDER BY 1")).all()
    assert (result.delivered_count, result.quarantined_count, result.failures) == (80, 3, ())
    assert [row.position for row in held] == [41, 82, 83]
    assert all(row.reasons[0].startswith("refused_by_clickhouse: ") for row in held)
    assert all("no_poison" in row.reasons[0] and "4111" not in row.reasons[0] for row in held)
    assert stores.client.rows("SELECT name FROM system.tables WHERE position(name, 'probe') > 0") == []
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_table_without_window_is_refused(stores: Stores) -> None:
    """A table in which repeated inserts would not be noticed is named with the statement that changes it."""
    stores.client.run("ALTER TABLE {table:Identifier} MODIFY SETTING non_replicated_deduplication_window = 0")

    assert "no deduplication window" in str(table_problem(stores.client))


def test_a_table_that_merges_events_away_is_refused(stores: Stores) -> None:
    """A ReplacingMergeTree is taken only when no two events are equal to it."""
    name = stores.client.table
    stores.client.run(f"CREATE TABLE other AS {name} ENGINE = ReplacingMergeTree ORDER BY event_type")
    stores.client.run(f"EXCHANGE TABLES other AND {name}")

    assert "merges would drop events" in str(table_problem(stores.client))


def test_many_refused_events_do_not_hold_the_others_up(stores: Stores) -> None:
    """However many events ClickHouse refuses, the rest of the batch is delivered in the same attempt."""
    for _ in range(30):
        publish(stores.engine, 3)
        publish(stores.engine, 1, event_type="poison", context='{"pin": "4711"}')
    stores.client.run("ALTER TABLE {table:Identifier} ADD CONSTRAINT no_poison CHECK event_type != 'poison'")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("outbox_pipeline.clickhouse.probe._MAX_REQUESTS", 40)
        result = relay(stores, until_empty=True)

    assert (result.delivered_count, result.quarantined_count, result.failures) == (90, 30, ())
