"""The sensor that tells analysts how far each day is delivered."""

from collections.abc import Iterator

import dagster as dg
import pytest

from outbox_pipeline.clickhouse.delivered import read_delivered
from outbox_pipeline.orchestration.completeness import completeness_sensor
from outbox_pipeline.orchestration.resources import PipelineResource
from outbox_pipeline.relay.stores import Stores
from tests.fixtures.events import publish


@pytest.fixture
def pipeline(stores: Stores) -> Iterator[PipelineResource]:
    """The resource on this test's databases."""
    settings = stores.settings
    assert settings.postgres_url
    assert settings.clickhouse_url
    resource = PipelineResource(
        postgres_url=settings.postgres_url.get_secret_value(), clickhouse_url=settings.clickhouse_url.get_secret_value()
    )
    yield resource
    resource.close()


def tick(pipeline: PipelineResource) -> str:
    """Evaluate the sensor once; return its skip reason."""
    context = dg.build_sensor_context(resources={"pipeline": pipeline})
    result = completeness_sensor(context)
    assert isinstance(result, dg.SensorResult)
    assert not result.run_requests
    return str(result.skip_reason)


def test_a_tick_writes_the_days_and_starts_nothing(stores: Stores, pipeline: PipelineResource) -> None:
    """Today is there with what is on its way."""
    publish(stores.engine, 2)

    said = tick(pipeline)

    assert "1 days written, 1 of them with events on their way" in said
    assert read_delivered(stores.client)[-1].undelivered_count == 2


def test_a_tick_that_cannot_write_says_why(stores: Stores, pipeline: PipelineResource) -> None:
    """Without its table the tick is skipped with the sentence that helps, and fails nothing."""
    stores.client.run("DROP TABLE {completeness:Identifier}")

    assert "run 'outbox init'" in tick(pipeline)
