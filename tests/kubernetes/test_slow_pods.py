"""With the settings as they are shipped, a pod may take its time to start."""

from collections.abc import Iterator

import dagster as dg
import pytest

from outbox_pipeline.settings import Settings
from tests.fixtures.events import publish
from tests.fixtures.kubernetes import OnKubernetes, new_folder, on_kubernetes
from tests.fixtures.servers import Servers

pytestmark = pytest.mark.kubernetes

#: Longer than a request waits for a run that nobody knows of.
SLOW_SECONDS = 60


@pytest.fixture
def stack(servers: Servers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnKubernetes]:
    """Dagster on a cluster, with no setting and no line of its file changed."""
    folder = new_folder(tmp_path_factory)
    with on_kubernetes(servers, migrated_template, folder, settings={}, instance={}) as running:
        yield running


def test_a_slow_pod_delivers_at_its_first_attempt(stack: OnKubernetes) -> None:
    """A machine that has to be found first costs its time and nothing else: no second attempt is asked for."""
    assert Settings.model_fields["request_seconds"].default < SLOW_SECONDS
    stack.cluster.start_pods_after(SLOW_SECONDS)
    publish(stack.stores.engine, 1000)

    stack.assert_whole()

    assert [(batch.status, batch.attempt) for batch in stack.batches()] == [("processed", 1)]
    assert [run.status for run in stack.runs()] == [dg.DagsterRunStatus.SUCCESS]
