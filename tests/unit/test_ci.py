"""What must pass before anything lands is one list of steps: `.ci/run` walks it, and GitHub has a job for each."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RUN = ROOT / ".ci" / "run"

#: What the script itself needs; everything else on its PATH here is ours.
_PROGRAMS = ("bash", "dirname", "cat", "mktemp", "rm")


def steps() -> list[str]:
    """Return the steps of `.ci/run`, in their order."""
    found = re.search(r"^STEPS=\((.+)\)$", RUN.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1].split()


def jobs(name: str) -> dict[str, Any]:
    """Return the jobs of a workflow."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))
    found: dict[str, Any] = workflow["jobs"]
    return found


def test_each_step_is_a_target_and_a_job() -> None:
    """A step that is added to `.ci/run` has a target of the Makefile and a job on GitHub, and none runs only there."""
    targets = re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    ci = jobs("ci.yml")
    in_matrix = [row["step"] for row in ci["check"]["strategy"]["matrix"]["include"]]

    assert [*in_matrix, "test"] == steps()
    assert set(steps()) <= set(targets)
    assert "bash .ci/run test" in [step.get("run") for step in ci["test"]["steps"]]


def test_make_check_is_what_ci_runs() -> None:
    """A contributor types one word for every step."""
    done = subprocess.run(["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "bash .ci/run" in done.stdout.splitlines()


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / ".github" / "workflows").glob("*.yml")))
def test_no_job_hangs_for_hours(name: str) -> None:
    """GitHub's own limit is six hours; each job has one of its own."""
    assert [job for job, body in jobs(name).items() if "timeout-minutes" not in body] == []


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with all programs there are, which write down how they are called; none of what steps need is there."""
    for name in _PROGRAMS:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    program(tmp_path, "make", 'echo "make $*" >> calls')
    program(tmp_path, "apt-get", 'echo "apt-get $*" >> calls')
    return tmp_path


def program(folder: Path, name: str, body: str) -> None:
    """Write a program into the machine's folder."""
    path = folder / name
    path.write_text(f"#!{folder}/bash\ncd {folder}\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def run(machine: Path, *arguments: str) -> list[str]:
    """Run `.ci/run` on the machine and return the calls of its programs."""
    environment = {"PATH": str(machine), "CI": "true", "HOME": str(machine)}
    done = subprocess.run(
        [machine / "bash", RUN, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return (machine / "calls").read_text(encoding="utf-8").splitlines()


def test_who_is_not_root_installs_with_sudo(machine: Path) -> None:
    """As on GitHub's runner; a password is not asked for."""
    program(machine, "id", "echo 1001")
    program(machine, "sudo", 'echo "sudo $*" >> calls; [ "$1" = -n ] && shift; "$@"')

    calls = run(machine, "lint-workflows")

    assert calls[0] == "sudo -n apt-get update -q"
    assert "apt-get install -qy nodejs npm" in calls
    assert calls[-1] == "make lint-workflows"


def test_root_needs_no_sudo(machine: Path) -> None:
    """As in a container, which has none."""
    program(machine, "id", "echo 0")

    calls = run(machine, "lint-workflows")

    assert calls == ["apt-get update -q", "apt-get install -qy nodejs npm", "make lint-workflows"]


def test_without_words_every_step_is_run(machine: Path) -> None:
    """And nothing is installed where no package manager is known."""
    (machine / "apt-get").unlink()

    calls = run(machine)

    assert sorted(calls) == sorted(f"make {step}" for step in steps())
    assert (calls[0], calls[-1]) == ("make lint", "make test")


def test_a_step_that_fails_ends_the_run(machine: Path) -> None:
    """What comes after it is not run, and the exit code says so."""
    program(machine, "make", '[ "$1" != demo-check ]')
    done = subprocess.run([machine / "bash", RUN], env={"PATH": str(machine)}, capture_output=True, check=False)

    assert done.returncode != 0
    assert done.stdout.decode().split("== ")[-1].strip() == "demo-check"


@pytest.mark.parametrize("failing", ["test-celery", "test-hosts"])
def test_steps_side_by_side_say_which_failed(machine: Path, failing: str) -> None:
    """The others of them end first and show what they print, and nothing comes after them."""
    program(machine, "make", f'echo "$1 was run"; [ "$1" != {failing} ]')
    done = subprocess.run(
        [machine / "bash", RUN], env={"PATH": str(machine), "CI": "true"}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"Failed: {failing}"
    assert done.stdout.splitlines()[-1] == "test-hosts was run"
    assert "test-kubernetes was run" in done.stdout
