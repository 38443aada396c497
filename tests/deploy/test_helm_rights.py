"""What the Helm chart's accounts may ask Kubernetes for: what Dagster's launcher asks, and nothing else."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes
import pytest
from dagster_k8s.client import DagsterKubernetesClient

from tests.fixtures.charts import LAUNCHERS, Helm, Manifest, one, pods

pytestmark = pytest.mark.deploy


class Recorder(kubernetes.client.ApiClient):
    """The outside edge: Kubernetes' client, which answers by itself and notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[tuple[str, str, str]] = set()

    def call_api(self, resource_path: str, method: str, *_: Any, **options: Any) -> Any:
        """Note group, resource and verb as a Role has them, and answer with one pod or one job."""
        group = re.match(r"/apis/(\w+)/", resource_path)
        resource = resource_path.partition("{namespace}/")[2]
        is_one = "{name}" in resource
        verb = {"GET": "get" if is_one else "list", "POST": "create", "DELETE": "delete"}[method]
        self.asked.add((group[1] if group else "", resource.replace("/{name}", ""), verb))
        return self._answer(options["response_types_map"][200])

    def _answer(self, kind: str) -> Any:
        client = kubernetes.client
        named = client.V1ObjectMeta(name="dagster-run-1")
        running = client.V1ContainerStatus(
            name="dagster",
            image="outbox",
            image_id="outbox",
            ready=True,
            restart_count=0,
            state=client.V1ContainerState(running=client.V1ContainerStateRunning()),
        )
        spec = client.V1PodSpec(containers=[client.V1Container(name="dagster")])
        pod = client.V1Pod(
            metadata=named, spec=spec, status=client.V1PodStatus(phase="Running", container_statuses=[running])
        )
        job = client.V1Job(metadata=named, status=client.V1JobStatus())
        answers = {
            "V1Job": job,
            "V1JobList": client.V1JobList(items=[client.V1Job(metadata=named)]),
            "V1PodList": client.V1PodList(items=[pod]),
            "CoreV1EventList": client.CoreV1EventList(items=[]),
            "str": SimpleNamespace(data=b""),
        }
        return answers.get(kind)


#: How `dagster_k8s/launcher.py` calls its client: by the daemon alone, and by UI and daemon.
BY_DAEMON = {
    "create_namespaced_job_with_retries": {"body": None},
    "get_job_status": {"job_name": "dagster-run-1"},
    "get_pod_names_in_job": {"job_name": "dagster-run-1"},
    "get_pod_debug_info": {"pod_name": "dagster-run-1"},
    "get_job_debug_info": {"job_name": "dagster-run-1"},
}
BY_UI = {"delete_job": {"job_name": "dagster-run-1"}}


def asked_by(calls: dict[str, dict[str, Any]]) -> set[tuple[str, str, str]]:
    """Return group, resource and verb of all that these calls of dagster-k8s' client ask Kubernetes for."""
    recorder = Recorder()
    client = DagsterKubernetesClient.production_client(
        batch_api_override=kubernetes.client.BatchV1Api(recorder),
        core_api_override=kubernetes.client.CoreV1Api(recorder),
    )
    for name, arguments in calls.items():
        getattr(client, name)(namespace="events", **({"body": {}} if "body" in arguments else arguments))
    return recorder.asked


def granted(manifests: list[Manifest], name: str) -> set[tuple[str, str, str]]:
    """Return group, resource and verb of all that a Role allows."""
    rules = one(manifests, "Role", name)["rules"]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_who_launches_may_what_launching_asks_for(helm: Helm) -> None:
    """The daemon may what Dagster's launcher calls, the UI what ends a run, in their own namespace alone."""
    manifests = helm.manifests({"runs": {"launcher": "kubernetes"}})
    launcher = Path(importlib.util.find_spec("dagster_k8s.launcher").origin).read_text(encoding="utf-8")

    assert set(re.findall(r"_api_client\.(\w+)\(", launcher)) == BY_DAEMON.keys() | BY_UI.keys()
    assert granted(manifests, "-daemon") == asked_by(BY_DAEMON | BY_UI)
    assert granted(manifests, "-ui") == asked_by(BY_UI)
    assert not [each for each in manifests if each["kind"].startswith("Cluster")]
    for name in ("-daemon", "-ui"):
        binding = one(manifests, "RoleBinding", name)
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": f"outbox{name}", "namespace": "events"}]
        assert binding["roleRef"]["name"] == f"outbox{name}"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_who_asks_kubernetes_for_nothing_has_no_token(helm: Helm, launcher: str) -> None:
    """Only daemon and UI have one, and only where runs are Jobs; everything else has an account without rights."""
    manifests = helm.manifests({"runs": {"launcher": launcher}})
    accounts = {each["metadata"]["name"] for each in manifests if each["kind"] == "ServiceAccount"}
    holders = {name for name, pod in pods(manifests).items() if pod["automountServiceAccountToken"]}
    bound = {each["subjects"][0]["name"] for each in manifests if each["kind"] == "RoleBinding"}

    assert holders == ({"daemon", "ui"} if launcher == "kubernetes" else set())
    assert bound == {f"outbox-{name}" for name in holders}
    assert accounts == bound | {"outbox-run"}
    assert not any(each["automountServiceAccountToken"] for each in manifests if each["kind"] == "ServiceAccount")
    assert {pod["serviceAccountName"] for name, pod in pods(manifests).items() if name not in {*holders, "init"}} == {
        "outbox-run"
    }
