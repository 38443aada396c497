"""What the Helm chart starts: Dagster's instance, commands that the image has, and probes that they answer."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import dagster as dg
import kubernetes
import pytest
import yaml
from dagster._cli import create_dagster_cli
from dagster._daemon.cli import create_dagster_daemon_cli
from dagster_k8s.job import construct_dagster_k8s_job
from dagster_webserver.cli import dagster_webserver
from typer.exceptions import TyperException
from typer.main import get_command

from outbox_pipeline.cli.main import app
from outbox_pipeline.orchestration.host.instance import LOCATION_NAME
from outbox_pipeline.orchestration.host.serving import SERVICE, is_serving
from outbox_pipeline.processes import wait_until
from outbox_pipeline.settings import Settings
from tests.fixtures.charts import CHART, NAMESPACE, VERSIONS, Helm, Manifest, RefusedError, containers, one, pods
from tests.fixtures.stopping import end_with_children

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).parents[2]

#: Each launcher's own file.
FILES = {
    "code": ROOT / "dagster.yaml",
    "celery": ROOT / "deploy" / "dagster" / "celery.yaml",
    "kubernetes": ROOT / "deploy" / "dagster" / "kubernetes.yaml",
}

CLASSES = {"code": "DefaultRunLauncher", "celery": "CeleryRunLauncher", "kubernetes": "K8sRunLauncher"}

#: Where the programs of the image are.
PROGRAMS = "/opt/outbox/bin/"

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
clusters: [{name: here, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: here, context: {cluster: here, user: here}}]
users: [{name: here, user: {}}]
"""


def dagster_yaml(manifests: list[Manifest]) -> Manifest:
    """Return the rendered dagster.yaml."""
    file: Manifest = yaml.safe_load(one(manifests, "ConfigMap", "-dagster")["data"]["dagster.yaml"])
    return file


@pytest.mark.parametrize("launcher", FILES)
def test_dagster_yaml_is_the_repository_s(helm: Helm, launcher: str) -> None:
    """The chart's copy is the file of the launcher, letter by letter, and the defaults change nothing of it."""
    copy, file = CHART / "files" / "dagster" / f"{launcher}.yaml", FILES[launcher].read_text(encoding="utf-8")

    assert copy.read_text(encoding="utf-8") == file, f"cp {FILES[launcher]} {copy}"
    assert dagster_yaml(helm.manifests({"runs": {"launcher": launcher}})) == yaml.safe_load(file)


def test_the_copy_of_the_rules_is_whole() -> None:
    """A chart reads no file beside itself, so the rules of deploy/grafana are in it once more."""
    copy, rules = CHART / "files" / "alerts.yaml", ROOT / "deploy" / "grafana" / "alerts.yaml"

    assert copy.read_bytes() == rules.read_bytes(), f"cp {rules} {copy}"


@pytest.fixture(params=FILES)
def instance(
    request: pytest.FixtureRequest, helm: Helm, dagster_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """The instance of each launcher's dagster.yaml with all that values change, in the daemon's environment."""
    values = {
        "image": {"repository": "registry.example.org/outbox-pipeline", "pullSecrets": ["registry"]},
        "runs": {"launcher": request.param, "maxConcurrent": 3},
        "settings": {"OUTBOX_BATCH_MAX_BYTES": "400000000"},
        "certificatesSecret": "authority",
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "outbox", "operator": "Exists"}],
    }
    manifests = helm.manifests(values)
    secrets = {
        "OUTBOX_DAGSTER_URL": dagster_url,
        "OUTBOX_CELERY_BROKER": "redis://127.0.0.1:1/0",
        "OUTBOX_CELERY_BACKEND": "redis://127.0.0.1:1/1",
    }
    for variable in pods(manifests)["daemon"]["containers"][0]["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value") or secrets[variable["name"]])
    file = dagster_yaml(manifests)
    if request.param == "kubernetes":
        # Outside of a cluster there is none to be found.
        (tmp_path / "kubeconfig").write_text(KUBECONFIG, encoding="utf-8")
        file["run_launcher"]["config"] |= {
            "load_incluster_config": False,
            "kubeconfig_file": str(tmp_path / "kubeconfig"),
        }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def test_dagster_takes_the_file(helm: Helm, instance: dg.DagsterInstance) -> None:
    """Every launcher's file, with all that values change in it, is an instance; a run's Job is one for Kubernetes."""
    launcher: Any = instance.run_launcher

    assert type(launcher).__name__ in CLASSES.values()
    assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 3
    if type(launcher).__name__ == "K8sRunLauncher":
        job = job_of(launcher)
        pod = job["spec"]["template"]["spec"]
        assert [problem for version in VERSIONS for problem in helm.problems([job], kubernetes=version)] == []
        assert pod["serviceAccountName"] == "outbox-run"
        assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
        assert pod["nodeSelector"] == {"disk": "fast"}
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} == {
            *("/tmp", "/etc/outbox/certificates")
        }
        assert pod["containers"][0]["envFrom"] == [
            {"configMapRef": {"name": "outbox-settings"}},
            {"secretRef": {"name": "outbox-urls"}},
        ]


def job_of(launcher: Any) -> Manifest:
    """Return the Job that the launcher would make for a run."""
    from dagster_k8s.container_context import K8sContainerContext

    context = K8sContainerContext.create_for_run(
        dg.DagsterRun(job_name="deliver_batch"), launcher, include_run_tags=True
    )
    job = construct_dagster_k8s_job(
        job_config=context.get_k8s_job_config(None, launcher),
        args=["dagster", "api", "execute_run"],
        job_name="dagster-run",
        user_defined_k8s_config=context.run_k8s_config,
    )
    found: Manifest = kubernetes.client.ApiClient().sanitize_for_serialization(job)
    return found


def test_each_launcher_has_its_class(helm: Helm) -> None:
    """The value names what it says."""
    for launcher, name in CLASSES.items():
        file = dagster_yaml(helm.manifests({"runs": {"launcher": launcher}}))
        assert file.get("run_launcher", {"class": "DefaultRunLauncher"})["class"] == name
    with pytest.raises(RefusedError):
        helm.manifests({"runs": {"launcher": "none"}})


@pytest.mark.parametrize("launcher", FILES)
def test_every_variable_is_one_that_somebody_reads(helm: Helm, launcher: str) -> None:
    """The chart sets settings, and what dagster.yaml reads; who launches runs has all of the latter."""
    manifests = helm.manifests({"runs": {"launcher": launcher}})
    read = set(re.findall(r"\benv: (\w+)", one(manifests, "ConfigMap", "-dagster")["data"]["dagster.yaml"]))
    settings = {f"OUTBOX_{name.upper()}" for name in Settings.model_fields}
    named = {
        name: {variable["name"] for each in containers(pod) for variable in each["env"]}
        for name, pod in pods(manifests).items()
    }

    assert set().union(*named.values()) - settings == {"DAGSTER_HOME"} | (read - settings)
    for name in ("code", "daemon", "ui", *(["worker"] if launcher == "celery" else ())):
        assert read <= named[name], name


@pytest.mark.parametrize("launcher", FILES)
def test_every_name_is_of_something_that_is_there(helm: Helm, launcher: str) -> None:
    """Files, settings and accounts that a pod or a run names are installed with it, in the release's namespace."""
    manifests = helm.manifests({"runs": {"launcher": launcher}})
    there = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    for name, pod in pods(manifests).items():
        container = containers(pod)[0]
        variables = {each["name"]: each.get("value") for each in container["env"]}
        maps = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
        maps += [each["configMapRef"]["name"] for each in container.get("envFrom", ())]
        accounts = [pod.get("serviceAccountName")]
        if "DAGSTER_K8S_RUN_NAMESPACE" in variables:
            maps.append(variables["DAGSTER_K8S_RUN_CONFIG_MAP"])
            accounts.append(variables["DAGSTER_K8S_RUN_SERVICE_ACCOUNT"])
            assert variables["DAGSTER_K8S_RUN_NAMESPACE"] == NAMESPACE

        assert {("ConfigMap", each) for each in maps} <= there, name
        assert {("ServiceAccount", each) for each in accounts if each} <= there, name
        assert variables["DAGSTER_HOME"] == variables["OUTBOX_HOME"] == "/var/lib/outbox"
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {
            *("/tmp", "/var/lib/outbox", "/var/lib/outbox/dagster.yaml", "/etc/outbox/workspace.yaml")
        }


def test_every_port_is_one_that_is_listened_on(helm: Helm) -> None:
    """Command, pod, service, probes and workspace.yaml agree, and so do the notes for a person."""
    manifests = helm.manifests()
    server = yaml.safe_load(one(manifests, "ConfigMap", "-dagster")["data"]["workspace.yaml"])["load_from"][0]
    for name, path in (("code", None), ("ui", "/server_info"), ("metrics", "/healthz")):
        container = pods(manifests)[name]["containers"][0]
        words = [*container["command"], *container.get("args", ())]
        port = int(words[words.index("--port" if name == "metrics" else "-p") + 1])
        (listening,) = container["ports"]
        (service,) = one(manifests, "Service", f"-{name}")["spec"]["ports"]
        asked = [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]

        assert (listening["containerPort"], service["port"]) == (port, port), name
        if path is None:
            assert [each["grpc"] for each in asked] == [{"port": port, "service": "DagsterApi"}] * 3
            assert server["grpc_server"] == {
                "host": "outbox-code",
                "port": port,
                "location_name": LOCATION_NAME,
            }
        else:
            assert [each["httpGet"] for each in asked] == [{"path": path, "port": listening["name"]}] * 3
    notes = helm.texts()["NOTES.txt"]
    assert "exec deploy/outbox-code --" in notes
    assert "port-forward service/outbox-ui 3000" in notes
    assert f"http://outbox-metrics.{NAMESPACE}:9720/metrics" in notes


@cache
def program(name: str) -> Any:
    """Return what reads the arguments of one of the image's programs."""
    return {
        "outbox": lambda: get_command(app),
        "dagster": create_dagster_cli,
        "dagster-daemon": create_dagster_daemon_cli,
    }[name]()


def require_command(words: list[str]) -> None:
    """Fail unless the image has this program, and it knows all of these words."""
    assert words[0].startswith(PROGRAMS), words
    name, rest = words[0].removeprefix(PROGRAMS), words[1:]
    assert (Path(sys.executable).parent / name).exists(), name
    if name == "python":
        assert rest[:2] == ["-P", "-m"]
        assert importlib.util.find_spec(rest[2]) is not None, rest[2]
        name, rest = "dagster" if rest[2].endswith(".code_server") else rest[2], rest[3:]
    try:
        parse(dagster_webserver if name.endswith(".webserver") else program(name), rest)
    except (click.ClickException, TyperException) as problem:
        raise AssertionError(f"{' '.join(words)}: {problem}") from None


def parse(command: Any, words: list[str]) -> None:
    """Let each command of a family read its own words."""
    context = command.make_context(command.name, list(words))
    if hasattr(command, "resolve_command"):
        _, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(found, rest)


@pytest.fixture
def workspace(helm: Helm, tmp_path: Path) -> str:
    """The chart's workspace.yaml, as a file."""
    path = tmp_path / "workspace.yaml"
    path.write_text(one(helm.manifests(), "ConfigMap", "-dagster")["data"]["workspace.yaml"], encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("launcher", FILES)
def test_every_command_is_one_that_the_image_has(helm: Helm, workspace: str, launcher: str) -> None:
    """Programs, commands and options exist: of processes, of probes, and of what the notes tell a person."""
    values = {"runs": {"launcher": launcher}}
    for pod in pods(helm.manifests(values)).values():
        for container in containers(pod):
            words = [*container["command"], *container.get("args", ())]
            require_command([workspace if word == "/etc/outbox/workspace.yaml" else word for word in words])
            probes = [container[name] for name in container if name.endswith("Probe")]
            for probe in (each for each in probes if "exec" in each):
                require_command(probe["exec"]["command"])
    told = re.findall(r" -- (.+)", helm.texts(values)["NOTES.txt"])
    assert told
    for line in told:
        require_command(line.split())


@pytest.mark.parametrize(
    "words",
    [["outbox", "inti"], ["outbox", "init", "--x"], ["dagster", "instance", "migrat"], ["dagster-demon", "run"]],
)
def test_a_command_that_is_not_there_is_seen(words: list[str]) -> None:
    """The test above sees a misspelt program or command, and an option that nobody knows."""
    with pytest.raises(AssertionError):
        require_command([f"{PROGRAMS}{words[0]}", *words[1:]])


def test_the_probe_asks_what_the_code_server_answers(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The command of the chart serves, and says so to the question that the kubelet asks, by the service's name."""
    container = pods(helm.manifests())["code"]["containers"][0]
    # Short, because of a socket's path.
    folder = tmp_path_factory.mktemp("p")
    socket = folder / "code.sock"
    words = [*container["command"], *container["args"]]
    place = words.index("-h")
    words[place : place + 4] = ["--socket", str(socket)]
    words[0] = sys.executable
    (folder / "dagster.yaml").touch()
    environment = {**os.environ, "DAGSTER_HOME": str(folder), "OUTBOX_FIRST_DAY": "2026-11-01"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        assert wait_until(lambda: is_serving(f"unix:{socket}") is None, seconds=120, pause=0.5), (
            folder / "log"
        ).read_text()
    finally:
        end_with_children(process)

    assert container["startupProbe"]["grpc"]["service"] == SERVICE


def test_a_slow_start_is_waited_for(helm: Helm) -> None:
    """No process is ended within its first minute because it does not answer yet."""
    for pod in pods(helm.manifests()).values():
        for container in pod["containers"]:
            probe = container.get("startupProbe")
            if probe is not None:
                assert probe["periodSeconds"] * probe["failureThreshold"] >= 60
