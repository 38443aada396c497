"""A health check of a code server: what it says of one that serves, one that does not yet, and none."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from outbox_pipeline.orchestration.host.serving import SERVICE, is_serving


@pytest.fixture
def server() -> Iterator[tuple[health.HealthServicer, str]]:
    """What a code server has for health checks, and its address."""
    servicer = health.HealthServicer()
    with ThreadPoolExecutor(1) as threads:
        running = grpc.server(threads)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, running)
        port = running.add_insecure_port("127.0.0.1:0")
        running.start()
        yield servicer, f"127.0.0.1:{port}"
        running.stop(None).wait()


def test_a_server_that_serves_is_well(server: tuple[health.HealthServicer, str]) -> None:
    """It says so for the service by which Dagster's code server is known."""
    servicer, address = server
    servicer.set(SERVICE, HealthCheckResponse.SERVING)

    assert is_serving(address) is None


def test_one_that_does_not_serve_yet_is_told_from_one_that_is_away(server: tuple[health.HealthServicer, str]) -> None:
    """Both are one sentence with the address."""
    servicer, address = server
    unknown = is_serving(address)
    servicer.set(SERVICE, HealthCheckResponse.NOT_SERVING)

    assert unknown == f"The code server at {address} does not answer (NOT_FOUND)."
    assert is_serving(address) == f"The code server at {address} answers, and does not serve yet."
    assert is_serving("127.0.0.1:9") == "The code server at 127.0.0.1:9 does not answer (UNAVAILABLE)."


def test_it_is_asked_without_dagster() -> None:
    """A supervisor asks every few seconds, and Dagster's imports would cost as much as a run's."""
    program = "import sys; import outbox_pipeline.orchestration.host.serving; print('dagster' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
