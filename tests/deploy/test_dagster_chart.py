"""The values for Dagster's own chart use names that its templates read, and agree with our own chart."""

from pathlib import Path

import pytest
import yaml
from dagster._cli import create_dagster_cli

from outbox_pipeline.orchestration.host.instance import DEFINITIONS_MODULE, LOCATION_NAME
from outbox_pipeline.settings import Settings
from tests.fixtures.charts import Manifest
from tests.fixtures.dockerfile import last

pytestmark = pytest.mark.deploy

DEPLOY = Path(__file__).parents[2] / "deploy"
FILE = DEPLOY / "helm" / "values-for-dagster-chart.yaml"

#: The names that the templates of Dagster's chart read, of those parts that the file sets; a list has the names of its
#: items, and None is what a template hands on to Kubernetes as it is.
KNOWN: Manifest = {
    "dagster-user-deployments": {
        "deployments": {
            "name": None,
            "image": {"repository": None, "tag": None, "pullPolicy": None},
            "dagsterApiGrpcArgs": None,
            "port": None,
            "deploymentStrategy": None,
            "includeConfigInLaunchedRuns": {"enabled": None},
            "env": None,
            "envSecrets": {"name": None},
            "podSecurityContext": None,
            "securityContext": None,
            "resources": None,
            "startupProbe": None,
        }
    },
    "dagsterWebserver": {"workspace": {"enabled": None, "servers": {"host": None, "port": None, "name": None}}},
    "dagsterDaemon": {
        "runRetries": {"enabled": None},
        "runMonitoring": {
            "enabled": None,
            "startTimeoutSeconds": None,
            "maxRuntimeSeconds": None,
            "pollIntervalSeconds": None,
            "freeSlotsAfterRunEndSeconds": None,
        },
    },
    "concurrency": {"enabled": None, "runs": {"tagConcurrencyLimits": {"key": None, "limit": None}}},
}


@pytest.fixture
def values() -> Manifest:
    """The file."""
    found: Manifest = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def unknown(given: object, known: Manifest | None, path: str = "") -> list[str]:
    """Return the paths of names that no template reads."""
    if known is None:
        return []
    if isinstance(given, list):
        return [name for item in given for name in unknown(item, known, path)]
    assert isinstance(given, dict), path
    wrong = [f"{path}{name}" for name in given if name not in known]
    parts = [unknown(part, known[name], f"{path}{name}.") for name, part in given.items() if name in known]
    return wrong + [name for part in parts for name in part]


def test_each_name_is_one_that_a_template_reads(values: Manifest) -> None:
    """Helm passes over names that no template reads, so a misspelt one would do nothing, in silence."""
    assert unknown(values, KNOWN) == []
    values["dagsterDaemon"]["runRetrys"] = values["dagsterDaemon"].pop("runRetries")
    assert unknown(values, KNOWN) == ["dagsterDaemon.runRetrys"]


def test_the_code_server_starts_with_these_arguments(values: Manifest) -> None:
    """Dagster's command knows them, and the location has the name that its sensors' state belongs to."""
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    (server,) = values["dagsterWebserver"]["workspace"]["servers"]
    command = create_dagster_cli().commands["api"].commands["grpc"]
    said = command.make_context(
        "grpc", ["-h", "0.0.0.0", "-p", str(deployment["port"]), *deployment["dagsterApiGrpcArgs"]]
    )

    assert said.params["module_name"] in (DEFINITIONS_MODULE, (DEFINITIONS_MODULE,))
    assert said.params["location_name"] == server["name"] == LOCATION_NAME
    assert (server["host"], server["port"]) == (deployment["name"], deployment["port"])


def test_it_holds_no_secret_and_no_unknown_setting(values: Manifest) -> None:
    """Its variables are settings, and those that are secrets come from a Secret."""
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    fields = {f"OUTBOX_{name.upper()}": str(field.annotation) for name, field in Settings.model_fields.items()}

    assert "://" not in FILE.read_text(encoding="utf-8")
    for variable in deployment["env"]:
        assert "SecretStr" not in fields[variable["name"]]


def test_it_runs_as_the_image_does_with_the_chart_s_secret(values: Manifest) -> None:
    """Not as root, and the Secret of whoever moves from one chart to the other has one name."""
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    user = int(last("USER").rest.partition(":")[0])
    security = deployment["podSecurityContext"]
    own = yaml.safe_load((DEPLOY / "helm" / "outbox-pipeline" / "values.yaml").read_text(encoding="utf-8"))

    assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, user, user)
    assert deployment["envSecrets"] == [{"name": own["urls"]["secret"]}]


def test_it_says_what_our_own_file_says(values: Manifest) -> None:
    """Monitoring, limits and memory are those of deploy/dagster/kubernetes.yaml."""
    file = yaml.safe_load((DEPLOY / "dagster" / "kubernetes.yaml").read_text(encoding="utf-8"))
    own, theirs = file["run_monitoring"], values["dagsterDaemon"]["runMonitoring"]
    (deployment,) = values["dagster-user-deployments"]["deployments"]

    assert own == {
        "enabled": theirs["enabled"],
        "start_timeout_seconds": theirs["startTimeoutSeconds"],
        "max_runtime_seconds": theirs["maxRuntimeSeconds"],
        "poll_interval_seconds": theirs["pollIntervalSeconds"],
        "free_slots_after_run_end_seconds": theirs["freeSlotsAfterRunEndSeconds"],
    }
    limits = values["concurrency"]["runs"]["tagConcurrencyLimits"]
    assert sorted(limits, key=str) == sorted(file["concurrency"]["runs"]["tag_concurrency_limits"], key=str)
    run = file["run_launcher"]["config"]["run_k8s_config"]["container_config"]["resources"]
    assert deployment["resources"] == run
