"""What Dagster delivers is told to analysts by itself, and each event leads to its run."""

from outbox_pipeline.clickhouse.completeness import read_delivered
from outbox_pipeline.monitoring.trace import trace_event
from tests.fixtures.events import publish
from tests.fixtures.stack import Running

RUN = """
query Run($id: ID!) { runOrError(runId: $id) { ... on Run { tags { key value } } } }
"""


def test_the_delivered_days_follow_by_themselves(running: Running) -> None:
    """Events are published and nobody starts anything: the day's row shows them all, and nothing on its way."""
    (event_id, *_) = publish(running.stores.engine, 20)
    running.wait_for_delivery()
    client = running.stores.client

    def is_told() -> bool:
        days = read_delivered(client)
        rows = client.rows("SELECT count() AS n, max(recorded_at) AS latest FROM {table:Identifier}")[0]
        last = days[-1] if days else None
        return last is not None and sum(day.event_count for day in days) == rows["n"] and last.undelivered_count == 0

    running.wait(is_told, "the sensor to write the day")

    settings = running.stores.settings.model_copy(update={"dagster_ui_url": running.stack.plan.url})
    found = trace_event(running.stores.engine, settings, event_id)
    (started,) = [station for station in found.stations if station.what.startswith("attempt")]
    assert started.run_url == f"{running.stack.plan.url}/runs/{started.run_id}"
    tags = running.graphql(RUN, {"id": started.run_id})["runOrError"]["tags"]
    assert {"key": "outbox/batch_id", "value": str(started.batch_id)} in tags
