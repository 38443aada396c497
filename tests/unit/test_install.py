"""`make setup` installs with uv where it is there, and with pip where it is not or fails; both check the hashes."""

import os
import subprocess
from pathlib import Path

import pytest

INSTALL = Path(__file__).parents[2] / ".ci" / "install"
_HASHED = ["--require-hashes", "-r", "requirements.lock"]


@pytest.mark.parametrize(
    ("uv", "calls"),
    [
        (None, ["pip"]),
        ("exit 0", ["uv"]),
        ("exit 1", ["uv", "pip"]),
    ],
)
def test_uv_is_taken_where_it_works(tmp_path: Path, uv: str | None, calls: list[str]) -> None:
    """Or pip follows with the same options, and a line says what is installed."""
    for name, then in (("uv", uv), ("python", "exit 0")):
        if then is not None:
            program = tmp_path / name
            program.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path / "calls"}\n{then}\n')
            program.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", INSTALL, tmp_path / "python", *_HASHED],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = (tmp_path / "calls").read_text().splitlines()

    assert ["uv" if line.startswith("uv pip install --python") else "pip" for line in found] == calls
    assert all(line.endswith(" ".join(_HASHED)) for line in found)
    assert found[-1].startswith("python -m pip install") == (calls[-1] == "pip")
    assert "Installing the packages of requirements.lock" in done.stderr
