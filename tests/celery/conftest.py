"""The stack that this folder's tests share: a broker, two workers, and Dagster's processes."""

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from outbox_pipeline.orchestration.host.instance import instance_text
from outbox_pipeline.orchestration.host.stack import CeleryPlan
from tests.fixtures.servers import Servers

if TYPE_CHECKING:
    from tests.fixtures.stack import Running

#: Of the product's dagster.yaml only what would make a test wait for minutes is another.
_SOONER = {
    "start_timeout_seconds: 180": "start_timeout_seconds: 60",
    "poll_interval_seconds: 60": "poll_interval_seconds: 5",
    # Of each launch without a broker: Celery tries 20 times, a second apart.
    "      env: OUTBOX_CELERY_BACKEND": (
        "      env: OUTBOX_CELERY_BACKEND\n"
        "    config_source: {result_backend_transport_options: {retry_policy: {max_retries: 5}}}"
    ),
}


@pytest.fixture(scope="session", autouse=True)
def _redis() -> None:
    if shutil.which("redis-server") is None and not os.environ.get("CI"):
        pytest.skip("redis-server is not installed")


@pytest.fixture(scope="package")
def running(servers: Servers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Running]":
    """Dagster's processes with two workers, each with a place for two runs."""
    # Not above: pytest looks into the assertions of a plugin only when nothing has imported it before.
    from tests.fixtures.celery_runs import REQUEST_SECONDS
    from tests.fixtures.stack import running_stack

    text = instance_text(on_celery=True)
    for product, sooner in _SOONER.items():
        assert product in text
        text = text.replace(product, sooner)
    celery = CeleryPlan(workers=2, concurrency=2, instance=text)
    # All runs are asked for at once, and wait.
    more = {
        "OUTBOX_REQUEST_SECONDS": str(REQUEST_SECONDS),
        "OUTBOX_MAX_OPEN_BATCHES": "12",
        "OUTBOX_MAX_CUTS_PER_TICK": "12",
    }
    with running_stack(
        servers, migrated_template, tmp_path_factory.mktemp("celery"), celery=celery, more=more, eager=True
    ) as stack:
        yield stack


@pytest.fixture(autouse=True)
def _revived(running: "Running") -> Iterator[None]:
    """Leave both workers and the broker to the next test, whatever one has done to them."""
    yield
    running.stack.revive()
