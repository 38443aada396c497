"""compose.yaml, read by Docker Compose itself: well-formed in every profile, no secret in it, commands of ours."""

import json
import os
import re
import shlex
import subprocess
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
import yaml
from dagster._cli import cli as dagster
from dagster._daemon.cli import cli as dagster_daemon
from dagster_webserver.cli import dagster_webserver

from outbox_pipeline.cli.main import app
from outbox_pipeline.settings import Settings
from tests.fixtures.clusters import running_cluster
from tests.fixtures.dockerfile import last
from tests.fixtures.nodes import postgres_programs

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy"
FILE = FOLDER / "compose.yaml"
EXAMPLE = FOLDER / ".env.example"
COMPOSE = ROOT / ".venv" / "deploy" / "bin" / "docker-compose"

PROFILES = ("celery", "monitoring")
#: What must be written into .env before anything starts, and what a profile takes beside it.
NEEDED = ("POSTGRES_PASSWORD", "OUTBOX_DB_PASSWORD", "DAGSTER_DB_PASSWORD", "CLICKHOUSE_PASSWORD")
OF_PROFILES = ("REDIS_PASSWORD", "GRAFANA_PASSWORD")
PASSWORDS = {name: f"{name.lower()}-hush" for name in (*NEEDED, *OF_PROFILES)}

#: What starts the processes of our image, as parsers of their arguments.
PROGRAMS = {
    "outbox": typer.main.get_command(app),
    "dagster": dagster,
    "dagster-daemon": dagster_daemon,
    "outbox_pipeline.orchestration.webserver": dagster_webserver,
    "outbox_pipeline.orchestration.code_server": dagster,
}


def config(
    *profiles: str, file: Path = FILE, folder: Path = FOLDER, given: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Ask Docker Compose what it makes of the file, with these variables in place of .env."""
    if not COMPOSE.exists():
        if os.environ.get("CI"):
            pytest.fail("Docker Compose is not installed")
        pytest.skip("Docker Compose is not installed: make .venv/deploy/installed")
    chosen = [word for profile in profiles for word in ("--profile", profile)]
    places = ["--file", str(file), "--project-directory", str(folder), "--env-file", "/dev/null"]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | (PASSWORDS if given is None else given)
    command = [COMPOSE, *places, *chosen, "config", "--format", "json"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """All services of all profiles, as Docker Compose would start them."""
    found: dict[str, Any] = json.loads(config(*PROFILES).stdout)
    return found


@pytest.fixture
def processes(project: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The services that are processes of our image."""
    return {name: one for name, one in project["services"].items() if one["image"] == "outbox-pipeline:local"}


@pytest.mark.parametrize("profiles", list(chain(*(combinations(PROFILES, count) for count in range(3)))))
def test_docker_compose_has_nothing_to_say(profiles: tuple[str, ...]) -> None:
    """Every key and every name of a service, network and volume is one that it knows, in each choice of profiles."""
    done = config(*profiles)

    assert (done.returncode, done.stderr) == (0, "")
    services = set(json.loads(done.stdout)["services"])
    assert {"postgres", "clickhouse", "init", "code", "daemon", "ui", "metrics"} <= services
    assert ("worker" in services) == ("celery" in profiles)
    assert ("grafana" in services) == ("monitoring" in profiles)


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("restart: unless-stopped", "restrt: unless-stopped"),
        ("condition: service_completed_successfully", "condition: service_complete"),
        ("clickhouse: {condition: service_healthy}", "clickhose: {condition: service_healthy}"),
        ("- home:/var/lib/outbox", "- hom:/var/lib/outbox"),
    ],
)
def test_a_misspelt_word_is_seen(tmp_path: Path, written: str, instead: str) -> None:
    """The test above sees a wrong key, a wrong value, and names that nothing has."""
    text = FILE.read_text(encoding="utf-8")
    assert written in text
    (tmp_path / "compose.yaml").write_text(text.replace(written, instead), encoding="utf-8")

    assert config(file=tmp_path / "compose.yaml").returncode != 0


@pytest.mark.parametrize("missing", NEEDED)
def test_a_password_that_is_missing_is_named(missing: str) -> None:
    """Nothing starts with an empty one."""
    done = config(given=PASSWORDS | {missing: ""})

    assert done.returncode != 0
    assert f"required variable {missing} is missing a value: write one into deploy/.env" in done.stderr


def test_a_profile_without_its_password_does_not_start(project: dict[str, Any]) -> None:
    """Docker Compose asks for variables of profiles that are not chosen too, so these services look themselves."""
    services = json.loads(config(*PROFILES, given={name: PASSWORDS[name] for name in NEEDED}).stdout)["services"]
    for name, variable in (("redis", "REDIS_PASSWORD"), ("grafana", "GF_SECURITY_ADMIN_PASSWORD")):
        service = project["services"][name]
        shell, flag, script = [part.replace("$$", "$") for part in service.get("entrypoint") or service["command"]]
        given = {variable: services[name]["environment"][variable]}
        done = subprocess.run([shell, flag, script], env=given, capture_output=True, text=True, check=False)

        assert (done.returncode, "is empty: write one into deploy/.env" in done.stderr) == (1, True)


def test_no_secret_stands_in_the_files() -> None:
    """Passwords come from .env, which git ignores; its example has none."""
    text = FILE.read_text(encoding="utf-8")
    urls = re.findall(r"://(\w*):([^@\n]*)@", text)
    values = re.findall(r"^\s+\w*PASSWORD: (.+)$", text, re.MULTILINE)
    ignored = subprocess.run(["git", "check-ignore", "-q", FOLDER / ".env"], cwd=ROOT, check=False)

    assert len(urls) == 6
    assert [value for value in (*(password for _, password in urls), *values) if not value.startswith("${")] == []
    assert re.findall(r"^#?\w*PASSWORD=(.+)$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE) == []
    assert ignored.returncode == 0


def test_the_example_names_every_variable_and_no_other() -> None:
    """Needed ones are not commented out, all others are."""
    lines = re.findall(r"^(#?)([A-Z_]+)=", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", FILE.read_text(encoding="utf-8")))

    assert {name for mark, name in lines if not mark} == set(NEEDED)
    assert {name for _, name in lines} == used - {"OUTBOX_ENVIRONMENT"} | {"COMPOSE_PROFILES"}


def test_every_setting_is_one_of_ours(processes: dict[str, dict[str, Any]]) -> None:
    """The processes are given no variable that none of them reads."""
    named = {name for service in processes.values() for name in service["environment"]}

    assert set(processes) == {"init", "code", "daemon", "ui", "metrics", "worker"}
    assert named - {f"OUTBOX_{name.upper()}" for name in Settings.model_fields} == set()


def test_every_url_leads_to_a_server_that_is_here(
    project: dict[str, Any], processes: dict[str, dict[str, Any]]
) -> None:
    """By the service's name, on its port, into the database that is made there, with the password it is made with."""
    postgres, clickhouse, redis = (
        project["services"][name]["environment"] for name in ("postgres", "clickhouse", "redis")
    )
    events = f"{clickhouse['CLICKHOUSE_USER']}:{clickhouse['CLICKHOUSE_PASSWORD']}@clickhouse:8123"
    urls = {
        "OUTBOX_POSTGRES_URL": f"postgresql://outbox:{postgres['OWNER_PASSWORD']}@postgres/outbox",
        "OUTBOX_DAGSTER_URL": f"postgresql://dagster:{postgres['DAGSTER_PASSWORD']}@postgres/dagster",
        "OUTBOX_CLICKHOUSE_URL": f"http://{events}/{clickhouse['CLICKHOUSE_DB']}",
        "OUTBOX_CELERY_BROKER": f"redis://:{redis['REDIS_PASSWORD']}@redis:6379/0",
        "OUTBOX_CELERY_BACKEND": f"redis://:{redis['REDIS_PASSWORD']}@redis:6379/1",
    }

    for name, service in processes.items():
        assert service["environment"].items() >= ({} if name == "metrics" else urls).items(), name
    assert processes["metrics"]["environment"] == {"OUTBOX_POSTGRES_URL": urls["OUTBOX_POSTGRES_URL"]}


def test_every_port_is_one_that_is_listened_on(project: dict[str, Any], processes: dict[str, dict[str, Any]]) -> None:
    """Health checks and ports of this machine name the port of the command, and an address that answers."""
    ui, metrics = (processes[name] for name in ("ui", "metrics"))
    port = ui["command"][ui["command"].index("-p") + 1]

    assert f"'http://127.0.0.1:{port}/server_info'" in ui["healthcheck"]["test"][-1]
    assert f"'http://127.0.0.1:{metrics['command'][-1]}/healthz'" in metrics["healthcheck"]["test"][-1]
    assert project["services"]["clickhouse"]["healthcheck"]["test"][-1] == "http://clickhouse:8123/ping"
    assert "--dbname=outbox" in project["services"]["postgres"]["healthcheck"]["test"]
    targets = {
        name: each["target"] for name, service in project["services"].items() for each in service.get("ports", [])
    }
    assert targets == {"postgres": 5432, "ui": int(port), "grafana": 3000}
    assert metrics["networks"].keys() == {"default", "monitoring"}
    assert last("EXPOSE").words == sorted([port, last("CMD").command[-3], metrics["command"][-1]])


def test_what_must_stay_is_in_a_volume(project: dict[str, Any], processes: dict[str, dict[str, Any]]) -> None:
    """Each server's folder, and that of Dagster's files, with dagster.yaml where the image's link leads."""
    kept = {
        name: {volume["target"] for volume in service["volumes"] if volume["type"] == "volume"}
        for name, service in project["services"].items()
        if "volumes" in service
    }

    assert kept == {name: {"/var/lib/outbox"} for name in processes} | {
        # Below it PostgreSQL's image has a folder for each major version.
        "postgres": {"/var/lib/postgresql"},
        "clickhouse": {"/var/lib/clickhouse"},
        "prometheus": {"/prometheus"},
        "grafana": {"/var/lib/grafana"},
    }
    for service in processes.values():
        assert "/etc/outbox/dagster.yaml" in {volume["target"] for volume in service["volumes"]}
    scripts = {volume["target"] for volume in project["services"]["postgres"]["volumes"] if volume["type"] == "bind"}
    assert scripts == {"/docker-entrypoint-initdb.d/databases.sh"}


def test_every_command_is_one_that_the_image_has(processes: dict[str, dict[str, Any]]) -> None:
    """With options that it takes; the code location's is the image's own."""
    told = {name: service["command"] for name, service in processes.items() if service.get("command")}
    checks = [
        service["healthcheck"]["test"] for service in processes.values() if "test" in service.get("healthcheck", {})
    ]

    assert set(processes) - set(told) == {"code"}
    for command in [*told.values(), *(test[1:] for test in checks), last("CMD").command]:
        for one in commands_in(command):
            parse(one)


@pytest.mark.parametrize(
    "command", ["outbox metric serve", "outbox metrics serve --hots x", "dagster-demon run", "dagster instance migrat"]
)
def test_a_command_that_is_not_there_is_seen(command: str) -> None:
    """The test above sees a wrong program, command and option."""
    with pytest.raises(Exception, match=r"metric|hots|demon|migrat"):
        parse(shlex.split(command))


def commands_in(command: list[str]) -> list[list[str]]:
    """Return the commands of a line of a shell, or the one that there is."""
    return [shlex.split(one) for one in command[2].split("&&")] if command[:2] == ["sh", "-c"] else [command]


def parse(words: list[str]) -> None:
    """Raise unless these are a program of the image, a command and options of it."""
    program, *rest = (
        word.replace("/etc/outbox/workspace.yaml", str(FOLDER / "image" / "workspace.yaml")) for word in words
    )
    if program == "python" and "-c" in rest:
        compile(rest[rest.index("-c") + 1], "health", "exec")
        return
    if program == "python":
        program, *rest = rest[rest.index("-m") + 1 :]
    command: Any = PROGRAMS[program]
    while hasattr(command, "commands"):
        name, *rest = rest
        command = command.commands[name]
    command.make_context(program, rest)


def test_everything_waits_for_what_it_needs(processes: dict[str, dict[str, Any]]) -> None:
    """Stores, then init, then the code location, then what asks it."""
    conditions = {
        name: {on: how["condition"] for on, how in service["depends_on"].items()} for name, service in processes.items()
    }

    assert conditions["init"] == {"postgres": "service_healthy", "clickhouse": "service_healthy"}
    assert all(how["init"] == "service_completed_successfully" for name, how in conditions.items() if name != "init")
    assert {name for name, how in conditions.items() if how.get("code") == "service_healthy"} == {"daemon", "ui"}


def test_workers_have_a_place_for_each_run(processes: dict[str, dict[str, Any]]) -> None:
    """A run that waits in the broker would count as one that has not started."""
    launcher = yaml.safe_load((FOLDER / "dagster" / "celery.yaml").read_text(encoding="utf-8"))
    worker = processes["worker"]

    places = worker["deploy"]["replicas"] * int(worker["command"][-1])
    assert places == launcher["concurrency"]["runs"]["max_concurrent_runs"]


def test_processes_are_shut_in(processes: dict[str, dict[str, Any]]) -> None:
    """A root that cannot be written, no capability, no way to more rights; those that stay are asked how they are."""
    for name, service in processes.items():
        assert (service["read_only"], service["tmpfs"], service["init"]) == (True, ["/tmp"], True), name
        assert service.keys().isdisjoint({"user", "privileged", "cap_add", "network_mode", "pid"}), name
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"]), name
    asked = {name for name, service in processes.items() if not service.get("healthcheck", {}).get("disable")}
    assert asked == {"code", "daemon", "ui", "metrics"}


def test_only_this_machine_reaches_a_port(project: dict[str, Any]) -> None:
    """Neither the UI nor a database is open to a network, and the code location to nobody but its own."""
    ports = [(name, port["host_ip"]) for name, one in project["services"].items() for port in one.get("ports", [])]

    assert ports
    assert {host for _, host in ports} == {"127.0.0.1"}
    assert {name for name, _ in ports} == {"postgres", "ui", "grafana"}
    assert set(project["services"]["grafana"]["networks"]) == {"monitoring"}


def test_every_file_that_is_mounted_is_there(project: dict[str, Any]) -> None:
    """Docker would make an empty folder of each that is not."""
    mounts = [
        Path(volume["source"])
        for service in project["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    ]

    assert mounts
    assert [path for path in mounts if not path.exists()] == []
    assert (FOLDER / "dagster" / "celery.yaml").is_file()


def test_an_image_of_a_registry_is_pulled() -> None:
    """Where both lines of the example say so; the image that is built here no registry is asked for."""
    written = re.findall(r"^#((?:IMAGE|PULL_POLICY)=.+)$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    given = PASSWORDS | dict(line.split("=", 1) for line in written)

    for variables, policy in ((PASSWORDS, "never"), (given, "missing")):
        services = json.loads(config(*PROFILES, given=variables).stdout)["services"].values()
        ours = [one for one in services if one["image"] == variables.get("IMAGE", "outbox-pipeline:local")]
        assert [one["pull_policy"] for one in ours] == [policy] * 6


def test_the_servers_are_those_that_ci_runs(project: dict[str, Any]) -> None:
    """Each image has a version and no digest, and PostgreSQL and ClickHouse the newest that the suite is run on."""
    images = {name: one["image"] for name, one in project["services"].items() if "outbox-pipeline" not in one["image"]}
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")

    assert [one for one in images.values() if not re.fullmatch(r"[a-z/-]+:v?\d+(\.\d+)*", one)] == []
    for name in ("postgres", "clickhouse"):
        assert re.findall(rf" {name}: (\S+)", ci)[-1].startswith(f"{images[name]}."), name


def test_prometheus_and_grafana_find_what_they_show(project: dict[str, Any]) -> None:
    """The metrics' port, the rules beside the configuration, the folder of the dashboard, the data source's address."""
    prometheus = yaml.safe_load((FOLDER / "compose" / "prometheus.yaml").read_text(encoding="utf-8"))
    grafana = FOLDER / "compose" / "grafana"
    source = yaml.safe_load((grafana / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))["datasources"][0]
    folder = yaml.safe_load((grafana / "dashboards" / "outbox.yaml").read_text(encoding="utf-8"))["providers"][0]
    services = project["services"]
    mounted = {volume["target"] for volume in services["prometheus"]["volumes"] + services["grafana"]["volumes"]}
    port = services["metrics"]["command"][-1]

    assert prometheus["scrape_configs"][0]["static_configs"] == [{"targets": [f"metrics:{port}"]}]
    assert {f"/etc/prometheus/{name}" for name in prometheus["rule_files"]} <= mounted
    assert f"{folder['options']['path']}/dashboard.json" in mounted
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")


def test_the_databases_are_made_for_their_roles() -> None:
    """What PostgreSQL's image runs on an empty volume: each database has an owner, who is no superuser."""
    programs = postgres_programs()
    with running_cluster(programs) as cluster:
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(cluster.port),
            "PGPASSWORD": "outbox",
            "OWNER_PASSWORD": "o'ne",
            "DAGSTER_PASSWORD": "two",
        }
        subprocess.run([FOLDER / "compose" / "databases.sh"], env=environment, check=True, timeout=60)
        for name, password in (("outbox", "o'ne"), ("dagster", "two")):
            place = {"host": "127.0.0.1", "port": cluster.port, "user": name, "password": password}
            with psycopg.connect(dbname=name, **place) as connection:
                said = connection.execute(
                    "SELECT pg_get_userbyid(datdba), rolsuper, rolcreaterole, rolcreatedb FROM pg_database, pg_roles "
                    "WHERE datname = current_database() AND rolname = current_user"
                ).fetchone()

            assert said == (name, False, name == "outbox", False)
