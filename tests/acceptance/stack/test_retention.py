"""Retention through Dagster's real processes: the outbox gets smaller, the event log does not."""

from sqlalchemy import text

from tests.fixtures.broken_batches import loaded_rows
from tests.fixtures.stack import Running

PRUNE = """
mutation { launchRun(executionParams: {
  selector: {
    repositoryLocationName: "outbox_pipeline", repositoryName: "__repository__", jobName: "prune_outbox"
  }
}) { __typename } }
"""

LONG_AGO = """
UPDATE outbox.batch SET processed_at = processed_at - interval '60 days', proved_at = proved_at - interval '60 days',
    cut_at = cut_at - interval '60 days', oldest_recorded_at = oldest_recorded_at - interval '60 days'
WHERE batch_id = :batch_id
"""

KEPT = """
SELECT (SELECT count(*) FROM outbox.event WHERE positions @> position), pruned_at IS NOT NULL
FROM outbox.batch WHERE batch_id = :batch_id
"""


def test_old_events_leave_postgres_and_stay_in_clickhouse(running: Running) -> None:
    """The job prunes what was delivered long ago and leaves the rest alone; both stay where analysts look."""
    old, young = (one.batch_id for one in running.deliver((40, 30)))

    def kept(batch_id: object) -> tuple[int, bool]:
        with running.stores.engine.begin() as connection:
            count, is_pruned = connection.execute(text(KEPT), {"batch_id": batch_id}).one()
        return count, is_pruned

    with running.stores.engine.begin() as connection:
        connection.execute(text(LONG_AGO), {"batch_id": old})
    assert running.graphql(PRUNE)["launchRun"]["__typename"] == "LaunchRunSuccess"
    running.wait(lambda: kept(old) == (0, True), "the old batch to be pruned")

    assert kept(young) == (30, False)
    assert [len(loaded_rows(running.stores.client, one)) for one in (old, young)] == [40, 30]
