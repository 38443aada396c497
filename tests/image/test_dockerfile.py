"""The Dockerfile as text: what it copies is there, its user is no name, and its commands are ours."""

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from outbox_pipeline.orchestration.host.instance import LOCATION_NAME
from outbox_pipeline.settings import Settings
from tests.fixtures.dockerfile import ROOT, Instruction, copied, dockerfile, last, stages

pytestmark = pytest.mark.image

HADOLINT = ROOT / ".venv" / "deploy" / "bin" / "hadolint"


@pytest.fixture
def hadolint() -> Path:
    """The linter for Dockerfiles."""
    if not HADOLINT.exists():
        if os.environ.get("CI"):
            pytest.fail("hadolint is not installed")
        pytest.skip("hadolint is not installed: make .venv/deploy/installed")
    return HADOLINT


def test_hadolint_has_nothing_to_say(hadolint: Path) -> None:
    """Each instruction, flag and shell command is as it should be."""
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("written", "instead"),
    [("WORKDIR /src", "WORKDIR src"), ("FROM python:3.12-slim-bookworm\n", "FROM python\n"), ("USER", "USR")],
)
def test_a_mistake_is_seen(hadolint: Path, tmp_path: Path, written: str, instead: str) -> None:
    """The test above sees a relative folder, a base without a version, an instruction that there is not."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert written in text
    (tmp_path / "Dockerfile").write_text(text.replace(written, instead), encoding="utf-8")
    done = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)

    assert done.returncode != 0


def test_what_is_copied_is_there() -> None:
    """Each is a file or folder of this repository, and no link in it leads out of what the build is sent."""
    sources = [ROOT / source for source in copied()]
    links = [
        path
        for source in sources
        for path in (source, *(source.rglob("*") if source.is_dir() else ()))
        if path.is_symlink()
    ]

    assert sources
    assert [source for source in sources if not source.exists()] == []
    assert links == []


def test_the_build_is_sent_what_is_copied_and_nothing_else() -> None:
    """`.dockerignore` leaves out everything but those paths, so no secret of a working copy is sent."""
    ignored, *kept = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    back = [line.removeprefix("!") for line in kept if line.startswith("!")]

    assert ignored == "*"
    assert [one for one in copied() if not any(Path(one).is_relative_to(path) for path in back)] == []
    assert [path for path in back if not any(Path(one).is_relative_to(path) for one in copied())] == []


def test_the_user_is_a_number_and_not_root() -> None:
    """Kubernetes' runAsNonRoot can tell that of a number only."""
    user, _, group = last("USER").rest.partition(":")

    assert (user, group) == ("10001", "10001")


def test_both_stages_have_one_base() -> None:
    """The environment that is built in one is run in the other, by the same Python at the same place."""
    bases = {stage[0].words[0] for stage in dockerfile()}

    assert len(bases) == 1
    assert ":" in bases.pop()


@pytest.mark.parametrize("name", ["CMD", "HEALTHCHECK"])
def test_its_commands_are_modules_of_ours(name: str) -> None:
    """Both are run with this Python, without the folder it is started in on its path."""
    python, isolated, flag, module, *_ = last(name).command

    assert (python, isolated, flag) == ("python", "-P", "-m")
    assert module.startswith("outbox_pipeline.")
    assert find_spec(module) is not None


def test_its_variables_and_ports_are_those_of_its_commands() -> None:
    """The workspace file finds the code location by the image's variables, the health check by the command's port."""
    variables = dict(word.split("=", 1) for word in last("ENV").words)
    command, check = last("CMD").command, last("HEALTHCHECK").command
    workspace = yaml.safe_load((ROOT / "deploy" / "image" / "workspace.yaml").read_text(encoding="utf-8"))
    (server,) = [one["grpc_server"] for one in workspace["load_from"]]
    settings = {f"OUTBOX_{name.upper()}" for name in Settings.model_fields}

    assert {name for name in variables if name.startswith("OUTBOX_")} <= settings
    assert variables[server["host"]["env"]] == "code"
    assert {variables[server["port"]["env"]], check[-1].partition(":")[2]} == {command[command.index("-p") + 1]}
    assert server["location_name"] == command[command.index("--location-name") + 1] == LOCATION_NAME


def test_an_address_of_an_index_stands_in_no_instruction() -> None:
    """Arguments of a build stand in the image's history, so an index comes as a secret of the build."""
    said = [one for stage in dockerfile() for one in stage]

    assert [one for one in said if one.name == "ARG" or "index" in one.rest.replace("--no-index", "")] == []
    assert [one for one in said if "pip install" in one.rest or " install --quiet --require" in one.rest] == [
        one for one in said if "--mount=type=secret,id=pip,target=/etc/pip.conf" in one.rest
    ]


def test_a_dockerfile_is_taken_apart() -> None:
    """Continued lines are one instruction, comments none, options no words."""
    text = "# syntax\nFROM a AS b\nRUN one \\\n    # why\n    && two\nFROM c\nCOPY --from=b x y\n"

    assert stages(text) == [
        [Instruction("FROM", "a AS b"), Instruction("RUN", "one      && two")],
        [Instruction("FROM", "c"), Instruction("COPY", "--from=b x y")],
    ]
    assert stages(text)[1][1].words == ["x", "y"]
