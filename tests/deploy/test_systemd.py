"""systemd's units: well-formed, shut in, with settings that exist; and their commands, run by hand, deliver."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from outbox_pipeline.processes import wait_until
from outbox_pipeline.settings import Settings
from tests.fixtures.servers import Servers
from tests.fixtures.stopping import end_with_children
from tests.fixtures.stores import fresh_clickhouse, fresh_database, url_of

pytestmark = pytest.mark.deploy

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICES = sorted(path.name for path in FOLDER.glob("*.service"))
ANALYZE = shutil.which("systemd-analyze")

needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask systemd about units in a folder of this test, and about no others but its own."""
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"}
    return subprocess.run([ANALYZE or "", *arguments], env=environment, capture_output=True, text=True, check=False)


def verified(folder: Path) -> str:
    """Return what systemd says of the units, nothing when all is well."""
    paths = [str(path) for path in (*folder.glob("*.service"), *folder.glob("*.target"))]
    done = analyze(folder, "verify", *paths)
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit code {done.returncode}")


class Machine:
    """A machine as the units expect it, below a folder: what they name by absolute paths lies there."""

    def __init__(self, folder: Path) -> None:
        """Copy the units; the programs are those of this Python."""
        self.folder = folder
        self.units = folder / "units"
        self.etc, self.state, self.run = (folder / name for name in ("etc", "state", "run"))
        for made in (self.etc, self.state, self.run):
            made.mkdir()
        shutil.copytree(FOLDER, self.units)
        for path in self.units.rglob("*.*"):
            if path.is_file():
                path.write_text(self.placed(path.read_text(encoding="utf-8")), encoding="utf-8")

    def placed(self, said: str) -> str:
        """Return *said* with this folder's paths."""
        places = {
            "/opt/outbox/bin": Path(sys.executable).parent,
            "/etc/outbox": self.etc,
            "/var/lib/outbox": self.state,
            "/run/outbox": self.run,
        }
        return re.sub("|".join(places), lambda found: str(places[found[0]]), said)

    def values(self, unit: str, key: str) -> list[str]:
        """Return the values of a key in a unit and in what belongs to all of them."""
        said = "".join(
            (self.units / name).read_text(encoding="utf-8") for name in ("outbox-.service.d/common.conf", unit)
        )
        return re.findall(rf"^{key}=(.*)$", said, re.MULTILINE)

    def environment(self, unit: str) -> dict[str, str]:
        """Return the whole environment of a unit's processes: its own words, and those of its file."""
        files = [Path(name) for name in self.values(unit, "EnvironmentFile") if not name.startswith("-")]
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        words = [line for line in lines if line and not line.startswith("#")]
        words += [word for value in self.values(unit, "Environment") for word in shlex.split(value)]
        return {"PATH": "/usr/bin:/bin", **dict("".join(shlex.split(word)).split("=", 1) for word in words)}

    def start(self, unit: str) -> subprocess.Popen[bytes]:
        """Run what comes before a unit's last command, and start that one."""
        *before, last = [*self.values(unit, "ExecStartPre"), *self.values(unit, "ExecStart")]
        options = {"cwd": self.state, "env": self.environment(unit), "start_new_session": True}
        for command in before:
            subprocess.run(shlex.split(command), check=True, timeout=120, **options)
        with (self.folder / f"{unit}.log").open("wb") as log:
            return subprocess.Popen(shlex.split(last), stdout=log, stderr=log, **options)


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine with the units, and nothing running."""
    return Machine(tmp_path_factory.mktemp("m"))


@needs_systemd
def test_systemd_has_nothing_to_say(machine: Machine) -> None:
    """Every key, section, program and dependency of the units is one that systemd knows."""
    assert verified(machine.units) == ""


@needs_systemd
@pytest.mark.parametrize(
    ("written", "instead"), [("Restart=always", "Restrt=always"), ("/dagster-daemon run", "/dagster-demon run")]
)
def test_a_misspelt_word_is_seen(machine: Machine, written: str, instead: str) -> None:
    """The test above sees a wrong key, and a program that is not there."""
    daemon = machine.units / "outbox-daemon.service"
    daemon.write_text(daemon.read_text(encoding="utf-8").replace(written, instead), encoding="utf-8")

    assert verified(machine.units) != ""


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_a_unit_is_shut_in(machine: Machine, unit: str) -> None:
    """What is left open to its processes is rated 2 of 10 at most."""
    done = analyze(machine.units, "security", "--offline=true", "--threshold=20", str(machine.units / unit))

    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_every_variable_is_one_that_somebody_reads(machine: Machine) -> None:
    """Neither the example nor a unit sets what is no setting, commented lines included."""
    example = (FOLDER / "outbox.env.example").read_text(encoding="utf-8")
    said = example + "".join("\n".join(machine.values(unit, "Environment")) for unit in SERVICES)
    named = set(re.findall(r"\b([A-Z][A-Z_]+)=", said))

    assert named - {f"OUTBOX_{name.upper()}" for name in Settings.model_fields} == {"DAGSTER_HOME", "PYTHONUNBUFFERED"}


def test_the_example_holds_no_secret() -> None:
    """Where a password belongs stands a word that nobody takes for one."""
    example = (FOLDER / "outbox.env.example").read_text(encoding="utf-8")

    assert set(re.findall(r"://\w+:([^@]+)@", example)) == {"CHANGE_ME"}


@pytest.fixture
def installed(machine: Machine, servers: Servers) -> Iterator[tuple[Machine, Engine]]:
    """The machine after the steps of deploy/README.md, with its settings, and the database of the outbox."""
    with (
        fresh_database(servers) as outbox,
        fresh_database(servers) as dagster,
        fresh_clickhouse(servers) as clickhouse,
    ):
        urls = {
            "OUTBOX_POSTGRES_URL": url_of(servers, outbox),
            "OUTBOX_CLICKHOUSE_URL": clickhouse,
            "OUTBOX_DAGSTER_URL": make_url(url_of(servers, dagster))
            .set(drivername="postgresql+psycopg2")
            .render_as_string(hide_password=False),
        }
        example = (FOLDER / "outbox.env.example").read_text(encoding="utf-8")
        for name, url in urls.items():
            example = re.sub(rf"^{name}=.*$", lambda _, said=f"{name}='{url}'": said, example, flags=re.MULTILINE)
        (machine.etc / "outbox.env").write_text(example, encoding="utf-8")
        shutil.copy(machine.units / "workspace.yaml", machine.etc)
        shutil.copy(FOLDER.parents[1] / "dagster.yaml", machine.etc)
        engine = create_engine(urls["OUTBOX_POSTGRES_URL"])
        yield machine, engine
        engine.dispose()


def test_the_commands_of_the_units_deliver(installed: tuple[Machine, Engine]) -> None:
    """Once init has ended, code location, daemon, UI and metrics run, and an event that is published arrives."""
    machine, engine = installed
    (machine.units / "outbox-ui.service").write_text(
        (machine.units / "outbox-ui.service").read_text(encoding="utf-8").replace("-p 3000", f"-p {free_port()}"),
        encoding="utf-8",
    )
    metrics = machine.units / "outbox-metrics.service"
    metrics.write_text(metrics.read_text(encoding="utf-8").replace("--port 9720", "--port 0"), encoding="utf-8")
    assert machine.start("outbox-init.service").wait(120) == 0
    names = ["outbox-code.service", "outbox-daemon.service", "outbox-ui.service", "outbox-metrics.service"]
    running = {name: machine.start(name) for name in names}
    try:
        with engine.begin() as connection:
            published = connection.execute(text("SELECT outbox.publish('order_placed', '{\"order\": 1}')")).scalar_one()
        status = text("SELECT status FROM outbox.event_status WHERE event_id = :id")

        def is_processed() -> bool:
            with engine.begin() as connection:
                return connection.execute(status, {"id": published}).scalar_one() == "processed"

        assert wait_until(is_processed, seconds=120, pause=0.5), said_in(machine)
        assert {name: process.poll() for name, process in running.items()} == dict.fromkeys(names)
    finally:
        for process in running.values():
            end_with_children(process)


def said_in(machine: Machine) -> str:
    """Return the last lines of each process."""
    return "\n".join(
        f"{path.name}: {path.read_text(encoding='utf-8', errors='replace')[-500:]}"
        for path in machine.folder.glob("*.log")
    )


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
