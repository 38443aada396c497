"""The Helm chart: whole for Helm and for each Kubernetes, shut in, and with values that cannot be wrong unseen."""

import json
import math
import re
from functools import reduce
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from outbox_pipeline.settings import Settings
from tests.fixtures.charts import (
    CHART,
    LAUNCHERS,
    LEAST,
    OPERATOR,
    VERSIONS,
    Helm,
    Manifest,
    RefusedError,
    containers,
    one,
    pods,
)

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).parents[2]

#: Settings that the chart sets itself, that the code location asks the ledger for, or that only a laptop has.
OF_THE_CHART = {"OUTBOX_HOME", "OUTBOX_FIRST_DAY", "OUTBOX_SERVER_FOLDER"}

#: Everything that a value may turn on.
ALL = {
    "image": {"repository": "registry.example.org/outbox-pipeline", "pullSecrets": ["registry"]},
    "urls": {"secret": "outbox-urls", "initSecret": "outbox-owner"},
    "certificatesSecret": "authority",
    "settings": {"OUTBOX_BATCH_MAX_BYTES": "400000000", "OUTBOX_UI_HOSTS": "dagster.example.org"},
    "ui": {"replicas": 2},
    "networkPolicy": {"uiFrom": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "outbox", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
}


def launched_by(launcher: str, values: Manifest | None = None) -> Manifest:
    """Return values with this launcher."""
    return (values or {}) | {"runs": {"launcher": launcher}}


@pytest.fixture(params=LAUNCHERS)
def everything(request: pytest.FixtureRequest, helm: Helm) -> list[Manifest]:
    """All manifests with each launcher, everything turned on."""
    return helm.manifests(launched_by(request.param, ALL), kinds=OPERATOR)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_helm_finds_no_fault(helm: Helm, launcher: str) -> None:
    """The chart passes Helm's own check, which reads templates, values and their schema."""
    assert helm.lint(launched_by(launcher)) == []
    assert helm.lint(launched_by(launcher, ALL)) == []


@pytest.mark.parametrize("kubernetes", VERSIONS)
def test_each_kubernetes_takes_each_manifest(helm: Helm, kubernetes: str) -> None:
    """With every launcher, with and without metrics and monitors, no field is unknown, missing or of a wrong type."""
    different = {}
    for launcher, metrics, kinds, values in product(LAUNCHERS, (True, False), ((), OPERATOR), ({}, ALL)):
        chosen = launched_by(launcher, values) | {"metrics": {"enabled": metrics}}
        found = helm.manifests(chosen, kubernetes=kubernetes, kinds=kinds)
        of_kubernetes = [each for each in found if not each["apiVersion"].startswith("monitoring.coreos.com/")]
        different |= {json.dumps(each): each for each in of_kubernetes}

        assert len(found) - len(of_kubernetes) == (2 if metrics and kinds else 0)
    assert helm.problems(list(different.values()), kubernetes=kubernetes) == []


def test_a_misspelt_field_is_seen(helm: Helm) -> None:
    """The check above sees a field that Kubernetes does not have, however deep."""
    found = helm.manifests()
    one(found, "Deployment", "-daemon")["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}

    (problem,) = helm.problems(found)
    assert "livenesProbe" in problem


def test_no_container_is_root(everything: list[Manifest]) -> None:
    """Each runs as 10001, gains no rights, and writes only to folders that go with its pod; runs' pods too."""
    for name, pod in pods(everything).items():
        shared = pod["securityContext"]
        assert (shared["runAsNonRoot"], shared["runAsUser"], shared["runAsGroup"]) == (True, 10001, 10001), name
        assert shared["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        kept = {volume["name"] for volume in pod["volumes"] if "emptyDir" not in volume}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")} == {
                "home",
                "tmp",
            }
            assert {mount["name"] for mount in container["volumeMounts"] if mount.get("readOnly")} == kept
            assert container["resources"]["limits"]["memory"]


def secret_names() -> set[str]:
    """Return the variables whose values are secrets."""
    fields = Settings.model_fields.items()
    return {f"OUTBOX_{name.upper()}" for name, field in fields if "SecretStr" in str(field.annotation)}


def test_secrets_come_by_reference(helm: Helm, everything: list[Manifest]) -> None:
    """No manifest holds a secret's value: its variable names a key of a Secret that is there already."""
    assert SecretStr in (Settings.model_fields["postgres_url"].annotation.__args__)
    for pod in pods(everything).values():
        for variable in [each for container in containers(pod) for each in container["env"]]:
            if variable["name"] in secret_names():
                reference = variable["valueFrom"]["secretKeyRef"]
                assert reference["key"] == variable["name"]
                assert reference["name"] in ("outbox-urls", "outbox-owner")
    kinds = {each["kind"] for each in everything}
    assert "Secret" not in kinds
    assert not re.search(r"://[^/\s]*@", json.dumps(everything))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_process_has_the_secrets_that_it_reads(helm: Helm, launcher: str) -> None:
    """Daemon and UI know nothing of the outbox's servers, and metrics nothing but the ledger."""
    found = pods(helm.manifests(launched_by(launcher)))
    known = {
        name: {variable["name"] for each in containers(pod) for variable in each["env"] if "valueFrom" in variable}
        for name, pod in found.items()
    }

    broker = {"OUTBOX_CELERY_BROKER", "OUTBOX_CELERY_BACKEND"} if launcher == "celery" else set()
    urls = {"OUTBOX_POSTGRES_URL", "OUTBOX_CLICKHOUSE_URL", "OUTBOX_DAGSTER_URL"}
    assert known == {
        "init": urls,
        "code": urls | broker | {"OUTBOX_ALERT_WEBHOOK_URL"},
        "daemon": {"OUTBOX_DAGSTER_URL"} | broker,
        "ui": {"OUTBOX_DAGSTER_URL"} | broker,
        "metrics": {"OUTBOX_POSTGRES_URL"},
    } | ({"worker": urls | broker} if launcher == "celery" else {})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"code": {"replicas": 2}}, "code/replicas"),
        ({"daemon": {"replicas": 2}}, "daemon/replicas"),
        ({"demon": {"replicas": 1}}, "demon"),
        ({"daemon": {"replica": 1}}, "replica"),
        ({"daemon": {"resources": {"limit": {"memory": "1Gi"}}}}, "limit"),
        ({"settings": {"OUTBOX_LINGER_SECOND": "30"}}, "OUTBOX_LINGER_SECOND"),
        ({"settings": {"OUTBOX_BATCH_MAX_BYTES": 400000000}}, "OUTBOX_BATCH_MAX_BYTES"),
        ({"settings": {"OUTBOX_POSTGRES_URL": "postgresql://outbox:secret@db/shop"}}, "OUTBOX_POSTGRES_URL"),
        ({"urls": {"secret": "outbox-urls", "postgres": "postgresql://outbox:secret@db/shop"}}, "postgres"),
        ({"runs": {"launcher": "docker"}}, "runs/launcher"),
        ({"settings": {"OUTBOX_BATCH_MAX_BYTES": "400_000_000"}}, "OUTBOX_BATCH_MAX_BYTES"),
        ({"settings": {"OUTBOX_BATCH_MAX_BYTES": "400MB"}}, "OUTBOX_BATCH_MAX_BYTES"),
        ({"image": {"repository": ""}}, "image.repository"),
        ({"image": {"repository": "registry.example.org:5000/outbox-pipeline:0.1.0"}}, "image/repository"),
        ({"image": {"repository": "registry.example.org/outbox-pipeline", "tag": ":0.1.0"}}, "image/tag"),
        ({"runs": {"launcher": "celery", "maxConcurrent": 5}}, "take 4 runs at once, and runs.maxConcurrent is 5"),
    ],
)
def test_wrong_values_are_refused(helm: Helm, values: Manifest, said: str) -> None:
    """A second daemon, a misspelt name, a secret in the clear, two tags or a worker too few installs nothing."""
    with pytest.raises(RefusedError, match=re.escape(said)) as refused:
        helm.manifests(values)
    assert "secret@" not in str(refused.value)


def test_every_setting_is_a_value() -> None:
    """What is a setting and no secret can be set, and nothing else."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    known = {f"OUTBOX_{name.upper()}" for name in Settings.model_fields}

    assert set(schema["properties"]["settings"]["properties"]) == known - secret_names() - OF_THE_CHART


def test_the_schema_leaves_no_name_open() -> None:
    """Each part of the values has a fixed set of names, those of the defaults, but for what is Kubernetes' own."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    parts = {name: part for name, part in schema["properties"].items() if part.get("type") == "object"}

    assert schema["properties"].keys() == {*defaults, "global"}
    assert {name for name, part in parts.items() if part.get("additionalProperties") is not False} == {
        *("global", "nodeSelector", "affinity")
    }
    for name in parts.keys() - {"global", "nodeSelector", "affinity", "settings"}:
        assert parts[name]["properties"].keys() == defaults[name].keys()


def test_the_readme_has_every_value() -> None:
    """Its table names what can be set, all of it, and nothing else."""
    table = (CHART / "README.md").read_text(encoding="utf-8").partition("## Values")[2].partition("A name that is")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)}
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def paths(values: Manifest, above: str = "") -> set[str]:
        whole = {"resources", "settings", "nodeSelector", "affinity", "monitorLabels"}
        parts = {name: part for name, part in values.items() if isinstance(part, dict) and name not in whole}
        below = [paths(part, f"{above}{name}.") for name, part in parts.items()]
        return {f"{above}{name}" for name in values.keys() - parts.keys()}.union(*below)

    assert named == paths(defaults)


def test_the_readme_says_the_defaults(helm: Helm) -> None:
    """Where its table has a value and no words, and in its commands: the Secret, and the job that has the log."""
    page = (CHART / "README.md").read_text(encoding="utf-8")
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    said: list[tuple[str, str]] = []
    for line in page.partition("## Values")[2].splitlines():
        if line.startswith("| `"):
            names, values = (cell.strip("| ").split(", ") for cell in line.split(" | ")[:2])
            pairs = zip(names, values * len(names) if len(values) == 1 else values, strict=True)
            said += [(name.strip("`"), value) for name, value in pairs if re.fullmatch(r"`\S+`|\d+", value)]

    def default(name: str) -> str:
        value = reduce(lambda above, part: above[part], name.split("."), defaults)
        return value if isinstance(value, str) else json.dumps(value)

    assert len(said) > 10
    assert [(name, value) for name, value in said if value.strip("`") != default(name)] == []
    assert re.findall(r"secret generic (\S+)", page) == [defaults["urls"]["secret"]]
    jobs = [manifest["metadata"]["name"] for manifest in helm.manifests() if manifest["kind"] == "Job"]
    assert re.findall(r"job/(\S+)", page) == jobs


def mebibytes(quantity: str) -> int:
    """Return how many MiB a quantity of memory is."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()
    return int(number) * (1024 if unit == "Gi" else 1)


@pytest.mark.parametrize("batch", [160_000_000, 400_000_000])
def test_memory_follows_the_batch(helm: Helm, batch: int) -> None:
    """512 MiB for each run that a process may have at once, and three times a batch requested, nine times at most."""
    settings = {"OUTBOX_BATCH_MAX_BYTES": str(batch)}
    code = pods(helm.manifests({"settings": settings}))["code"]["containers"][0]["resources"]
    celery = launched_by("celery", {"settings": settings, "worker": {"replicas": 2, "concurrency": 3}})
    worker = pods(helm.manifests(celery))["worker"]["containers"][0]["resources"]
    run = run_config(helm.manifests(launched_by("kubernetes", {"settings": settings})))["container_config"]["resources"]

    for resources, runs in ((code, 4), (worker, 3), (run, 1)):
        for kind, times in (("requests", 3), ("limits", 9)):
            least = runs * (512 + times * batch / 2**20)
            assert mebibytes(resources[kind]["memory"]) == math.ceil(least / 256) * 256


def run_config(manifests: list[Manifest]) -> Manifest:
    """Return what the rendered dagster.yaml says of the pods of runs."""
    file = yaml.safe_load(one(manifests, "ConfigMap", "-dagster")["data"]["dagster.yaml"])
    config: Manifest = file["run_launcher"]["config"]["run_k8s_config"]
    return config


def test_pods_follow_their_configuration(helm: Helm) -> None:
    """A pod whose settings or dagster.yaml have changed is replaced, and no other."""

    def checksums(values: Manifest) -> set[str]:
        deployments = [each for each in helm.manifests(values) if each["kind"] == "Deployment"]
        return {each["spec"]["template"]["metadata"]["annotations"]["checksum/config"] for each in deployments}

    before = checksums({})
    assert len(before) == 1
    assert checksums({"ui": {"replicas": 2}}) == before
    assert not checksums({"settings": {"OUTBOX_LINGER_SECONDS": "30"}}) & before
    assert not checksums({"runs": {"maxConcurrent": 2}}) & before


def test_one_process_at_a_time(helm: Helm) -> None:
    """Code location and daemon end before their successors start; only the UI, where it has several, has a budget."""
    found = helm.manifests({"ui": {"replicas": 2}})

    for name in ("-code", "-daemon"):
        assert one(found, "Deployment", name)["spec"]["strategy"] == {"type": "Recreate"}
    (budget,) = (each for each in found if each["kind"] == "PodDisruptionBudget")
    assert budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == "ui"
    assert not [each for each in helm.manifests() if each["kind"] == "PodDisruptionBudget"]


def test_services_lead_to_their_pods(everything: list[Manifest]) -> None:
    """Each service and each deployment selects the pods of one component, and names ports that they have."""
    deployments = [each for each in everything if each["kind"] == "Deployment"]
    for service in (each for each in everything if each["kind"] == "Service"):
        chosen = [each for each in deployments if selects(service["spec"]["selector"], each)]
        assert [each["metadata"]["name"] for each in chosen] == [service["metadata"]["name"]]
        ports = {port["name"] for port in chosen[0]["spec"]["template"]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for deployment in deployments:
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert [each for each in deployments if selects(selector, each)] == [deployment]


def selects(selector: dict[str, str], deployment: Manifest) -> bool:
    """Tell whether a deployment's pods have all these labels."""
    return selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_only_daemon_and_ui_reach_the_code_location(everything: list[Manifest]) -> None:
    """Who reaches it can have it run any code; what no policy names is reached by nobody."""
    policies = {each["metadata"]["name"]: each["spec"] for each in everything if each["kind"] == "NetworkPolicy"}
    labels = {"app.kubernetes.io/name": "outbox-pipeline", "app.kubernetes.io/instance": "outbox"}

    assert policies["outbox"] == {"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress"]}
    (rule,) = policies["outbox-code"]["ingress"]
    assert rule["ports"] == [{"port": "grpc", "protocol": "TCP"}]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"] == labels
    assert peer["podSelector"]["matchExpressions"] == [
        {"key": "app.kubernetes.io/component", "operator": "In", "values": ["daemon", "ui"]}
    ]
    for name, component in (("outbox-ui", "ui"), ("outbox-metrics", "metrics"), ("outbox-code", "code")):
        assert policies[name]["podSelector"]["matchLabels"] == labels | {"app.kubernetes.io/component": component}
    assert len(policies) == 4


def test_nobody_in_the_cluster_reaches_the_ui_unasked(helm: Helm) -> None:
    """It has no login of its own, so a policy for it is written only for those who are named."""
    names = [each["metadata"]["name"] for each in helm.manifests() if each["kind"] == "NetworkPolicy"]

    assert names == ["outbox", "outbox-code", "outbox-metrics"]


def test_what_the_operator_reads(helm: Helm) -> None:
    """The rules are those of deploy/grafana, by heart, and the monitor finds the service and its port."""
    found = helm.manifests({"metrics": {"monitorLabels": {"release": "prometheus"}}}, kinds=OPERATOR)
    rules, monitor = (one(found, kind, "-metrics") for kind in ("PrometheusRule", "ServiceMonitor"))
    service = one(found, "Service", "-metrics")

    assert rules["spec"] == yaml.safe_load((ROOT / "deploy" / "grafana" / "alerts.yaml").read_text(encoding="utf-8"))
    assert monitor["spec"].keys() == {"selector", "endpoints"}
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"] == [{"port": "http", "path": "/metrics", "interval": "30s"}]
    assert [port["name"] for port in service["spec"]["ports"]] == ["http"]
    assert {each["metadata"]["labels"]["release"] for each in (rules, monitor)} == {"prometheus"}
    unasked = helm.manifests({"metrics": {"monitors": False}}, kinds=OPERATOR)
    assert not {"PrometheusRule", "ServiceMonitor"} & {each["kind"] for each in unasked}


def test_the_schema_is_made_before_anything_starts(helm: Helm) -> None:
    """Init, then Dagster's migration, in a job before the release; it needs nothing that the release brings."""
    found = helm.manifests()
    job, files = one(found, "Job", "-init"), one(found, "ConfigMap", "-init")
    pod = job["spec"]["template"]["spec"]

    assert [each["command"][1:] for each in containers(pod)] == [["init"], ["instance", "migrate"]]
    for hook in (job, files):
        assert hook["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    weights = [int(hook["metadata"]["annotations"]["helm.sh/hook-weight"]) for hook in (files, job)]
    assert weights == sorted(set(weights))
    assert "serviceAccountName" not in pod
    assert pod["automountServiceAccountToken"] is False
    assert {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume} == {"outbox-init"}
    assert all("envFrom" not in each for each in containers(pod))


def test_the_owner_s_urls_are_for_init_alone(helm: Helm) -> None:
    """Where the pipeline's role may not change the schema, the job takes another Secret, and nothing else does."""
    found = pods(helm.manifests({"urls": {"secret": "outbox-urls", "initSecret": "outbox-owner"}}))

    def secrets(pod: Manifest) -> set[str]:
        variables: list[dict[str, Any]] = [each for container in containers(pod) for each in container["env"]]
        return {each["valueFrom"]["secretKeyRef"]["name"] for each in variables if "valueFrom" in each}

    assert {name: secrets(pod) for name, pod in found.items()} == {
        name: {"outbox-owner" if name == "init" else "outbox-urls"} for name in found
    }


def test_versions_are_the_package_s() -> None:
    """Chart, application and the image's default tag are one version."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))

    assert {chart["version"], chart["appVersion"]} == {version("outbox-pipeline")}


def test_the_least_is_the_image(helm: Helm) -> None:
    """One value has no default: where the image is."""
    images = {each["image"] for pod in pods(helm.manifests()).values() for each in containers(pod)}

    assert LEAST.keys() == {"image"}
    assert images == {f"registry.example.org/outbox-pipeline:{version('outbox-pipeline')}"}
    digest = {"image": {"repository": "registry.example.org:5000/o", "digest": f"sha256:{'0' * 64}"}}
    pinned = {each["image"] for pod in pods(helm.manifests(digest)).values() for each in containers(pod)}
    assert pinned == {f"registry.example.org:5000/o@sha256:{'0' * 64}"}
