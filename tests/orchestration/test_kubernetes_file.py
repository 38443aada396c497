"""deploy/dagster/kubernetes.yaml is dagster.yaml with another launcher, and every word of it is one of Dagster's."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import construct_dagster_k8s_job
from kubernetes.client import ApiClient
from kubernetes.utils import parse_quantity

from tests.fixtures.kubernetes import INSTANCE_FILE, ROOT, RUN_VARIABLES, instance_file

#: What a run on Kubernetes needs otherwise than a process of the code location.
_OWN_SECTIONS = {"run_launcher", "compute_logs"}


def read(path: Path) -> dict[str, Any]:
    """Return a file of Dagster's instance."""
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def test_it_is_the_product_s_instance_with_another_launcher() -> None:
    """Queue, retention, monitoring and the rest are what dagster.yaml says; only a start may take longer."""
    ours, product = read(INSTANCE_FILE), read(ROOT / "dagster.yaml")

    assert ours.keys() - product.keys() == _OWN_SECTIONS
    assert ours["run_monitoring"].pop("start_timeout_seconds") > product["run_monitoring"].pop("start_timeout_seconds")
    assert {name: ours[name] for name in product} == product


@pytest.fixture
def on_kubernetes(pipeline_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "dg.DagsterInstance":
    """An instance of that file; its cluster is an address at which nothing listens."""
    kubeconfig = tmp_path / "kubeconfig"
    context = {"name": "here", "context": {"cluster": "here", "user": "me"}}
    file = {
        "clusters": [{"name": "here", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [context],
        "users": [{"name": "me", "user": {}}],
        "current-context": "here",
    }
    kubeconfig.write_text(yaml.safe_dump(file), encoding="utf-8")
    for name, value in RUN_VARIABLES.items():
        monkeypatch.setenv(name, value)
    instance = yaml.safe_load(instance_file({}))
    # KUBECONFIG is read when its client is imported.
    instance["run_launcher"]["config"]["kubeconfig_file"] = str(kubeconfig)
    (pipeline_environment / "dagster.yaml").write_text(yaml.safe_dump(instance), encoding="utf-8")
    return dg.DagsterInstance.from_config(str(pipeline_environment))


def test_it_loads_as_an_instance(on_kubernetes: dg.DagsterInstance) -> None:
    """Dagster knows each key, reads the image and the rest from the environment, and queues runs as ever."""
    with on_kubernetes as instance:
        launcher = instance.run_launcher

        assert isinstance(launcher, K8sRunLauncher)
        assert launcher.job_image == RUN_VARIABLES["DAGSTER_K8S_RUN_IMAGE"]
        assert launcher.env_secrets == [RUN_VARIABLES["DAGSTER_K8S_RUN_SECRET"]]
        assert launcher.supports_check_run_worker_health
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None
        assert queue.max_concurrent_runs == 4


def test_it_holds_no_secret() -> None:
    """Where a URL or a name of the cluster belongs, the file says which variable has it."""
    file = read(INSTANCE_FILE)
    launcher = file["run_launcher"]["config"]

    assert file["storage"]["custom"]["config"] == {"postgres_url": {"env": "OUTBOX_DAGSTER_URL"}}
    assert {name for name in RUN_VARIABLES if name not in str(launcher)} == set()
    assert "env_vars" not in launcher


def test_a_run_s_pod_may_do_little(on_kubernetes: dg.DagsterInstance) -> None:
    """Its Job is tried once; its pod is not root, gets no token and writes in /tmp alone."""
    with on_kubernetes as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, K8sRunLauncher)
        context = launcher.get_container_context_for_run(dg.DagsterRun("deliver_batch"))
        made = construct_dagster_k8s_job(
            context.get_k8s_job_config(RUN_VARIABLES["DAGSTER_K8S_RUN_IMAGE"], launcher),
            args=["run"],
            job_name="run",
            user_defined_k8s_config=context.run_k8s_config,
        )
    job = ApiClient().sanitize_for_serialization(made)["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]

    limits = read(INSTANCE_FILE)["run_monitoring"]
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert job["activeDeadlineSeconds"] > limits["start_timeout_seconds"] + limits["max_runtime_seconds"]
    assert job["ttlSecondsAfterFinished"] > 0
    assert not pod["automountServiceAccountToken"]
    assert not pod["enableServiceLinks"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    given = container["resources"]
    assert parse_quantity(given["requests"]["memory"]) < parse_quantity(given["limits"]["memory"])
    assert [each["name"] for each in container["env"] if not each["name"].startswith("DAGSTER_")] == []
