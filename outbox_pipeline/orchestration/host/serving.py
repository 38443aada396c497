"""Whether a code server serves, for a supervisor that asks every few seconds: `python -m …host.serving HOST:PORT`.

Dagster's own `dagster api grpc-health-check` asks the same question after seconds of imports. Kubernetes asks it
itself, where the probe is `grpc: {port: 4000, service: DagsterApi}`. Invariant: nothing of Dagster is imported here.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

#: What Dagster's code server calls itself.
SERVICE = "DagsterApi"
_SECONDS = 5


def is_serving(address: str) -> str | None:
    """Return None when the code server at `host:port` serves, else in one sentence what is wrong."""
    with grpc.insecure_channel(address) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=SERVICE)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=_SECONDS)
        except grpc.RpcError as error:
            return f"The code server at {address} does not answer ({error.code().name})."
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return f"The code server at {address} answers, and does not serve yet."


if __name__ == "__main__":
    sys.exit(is_serving(sys.argv[1]))
