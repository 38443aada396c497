"""A pod that cannot be made says what is missing, and holds nothing up once it is there."""

import dagster as dg
import pytest

from tests.fixtures.events import publish
from tests.fixtures.kubernetes import SECRET, START_TIMEOUT_SECONDS, OnKubernetes

pytestmark = pytest.mark.kubernetes


def test_a_secret_that_is_missing_is_named(stack: OnKubernetes) -> None:
    """A pod that cannot be made fails its run at Dagster's start timeout, with what is missing; then events arrive."""
    stack.cluster.delete_secret(SECRET)
    publish(stack.stores.engine, 10)
    run_id = stack.run_in(dg.DagsterRunStatus.STARTING)

    stack.wait_for_status(run_id, dg.DagsterRunStatus.FAILURE)

    said = stack.said_of(run_id)
    assert f"Run timed out due to taking longer than {START_TIMEOUT_SECONDS} seconds to start." in said
    assert f'Waiting: CreateContainerConfigError: secret "{SECRET}" not found' in said
    assert "try running `kubectl describe pod dagster-run-" in said
    stack.cluster.create("Secret", SECRET, stack.secret)
    stack.assert_whole()
