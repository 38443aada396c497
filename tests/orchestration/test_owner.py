"""Through Dagster another outbox's table gets nothing either: no run is asked for, and one that runs fails."""

import dagster as dg
import pytest

from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.instances import everything
from tests.fixtures.runs import execute, requested
from tests.fixtures.sensors import pipeline, tick, tick_completeness

pytestmark = pytest.mark.usefixtures("unclaimed")


def test_no_run_is_asked_for(instance: dg.DagsterInstance, stores: Stores, other: Stores) -> None:
    """The tick fails with the sentence before it cuts anything, and the days are not written."""
    publish(other.engine, 1)
    relay(other)
    publish(stores.engine, 2)
    before = everything(stores)

    with pytest.raises(ConfigurationError, match="OUTBOX_CLICKHOUSE_TABLE"):
        tick(instance, pipeline(stores))

    assert "belongs to another outbox" in tick_completeness(instance, stores)
    assert everything(stores) == before


def test_a_run_that_comes_second_sends_nothing(instance: dg.DagsterInstance, stores: Stores, other: Stores) -> None:
    """The first step fails with the sentence, the attempt is not begun, and the owner's rows are untouched."""
    publish(stores.engine, 2)
    config = requested(stores)
    publish(other.engine, 3)
    relay(other)
    before = everything(stores)

    result = execute(instance, config, raise_on_error=False)

    (failure,) = result.get_step_failure_events()
    assert failure.step_key.endswith("extract_batch")
    assert "belongs to another outbox" in str(failure.step_failure_data.error)
    assert everything(stores) == before
    assert_each_exactly_once(other.engine, other.client)


def test_a_run_claims_a_table_without_an_owner(instance: dg.DagsterInstance, stores: Stores, other: Stores) -> None:
    """Where only Django has migrated, the first run of Dagster is what claims."""
    publish(stores.engine, 2)

    execute(instance, requested(stores))

    with pytest.raises(ConfigurationError, match="belongs to another outbox"):
        relay(other)
    assert_each_exactly_once(stores.engine, stores.client)
