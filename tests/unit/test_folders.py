"""The home is its owner's alone, and no folder that is somebody's is closed or taken."""

import os
from pathlib import Path

import pytest

from outbox_pipeline.embedded.engines import running_engines
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.folders import can_hold_socket, known_socket_folder, private_home, socket_folder
from outbox_pipeline.orchestration.host.instance import prepare_dagster_home
from outbox_pipeline.orchestration.host.stack import running_stack
from tests.fixtures.accounts import LONG, OWNER, needs_root
from tests.fixtures.folders import mode


def test_a_new_home_is_closed(tmp_path: Path) -> None:
    """Whoever makes it: the engines, or Dagster's processes on servers given by URL."""
    private_home(tmp_path / "first")
    prepare_dagster_home(tmp_path / "second")

    assert mode(tmp_path / "first") == 0o700
    assert mode(tmp_path / "second") == 0o700


@pytest.mark.parametrize("mark", ["lock", "stack.lock"])
def test_a_home_of_an_earlier_version_is_closed(tmp_path: Path, mark: str) -> None:
    """It was made with the umask, so every account could read it."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    (home / mark).touch()
    (home / "users").mkdir()

    private_home(home)

    assert mode(home) == 0o700


def test_a_folder_with_other_things_in_it_is_not_closed(tmp_path: Path) -> None:
    """Nobody loses the way into /tmp because OUTBOX_HOME leads there; the sentence says both ways out."""
    (tmp_path / "thesis.txt").touch()
    tmp_path.chmod(0o755)

    with pytest.raises(ConfigurationError, match="does not exist yet, or run: chmod 700"):
        private_home(tmp_path)
    assert mode(tmp_path) == 0o755

    tmp_path.chmod(0o700)
    private_home(tmp_path)


def test_a_file_is_no_home(tmp_path: Path) -> None:
    """It is told as what it is, not as a number of the system."""
    (tmp_path / "home").touch()

    with pytest.raises(ConfigurationError, match="is a file: set it to a folder"):
        private_home(tmp_path / "home")


@needs_root
def test_a_home_of_another_account_is_refused(tmp_path: Path) -> None:
    """Its files say which processes are ended and what is started; a look at it is a sentence too."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, OWNER, OWNER)

    for use in (private_home, running_engines, running_stack, prepare_dagster_home):
        with pytest.raises(ConfigurationError, match=f"belongs to another account \\(uid {OWNER}\\)"):
            use(home)


def test_sockets_of_a_short_home_are_in_it(tmp_path: Path) -> None:
    """Nothing is made elsewhere."""
    home = Path(os.path.realpath(tmp_path))
    if not can_hold_socket(home / "run"):
        pytest.skip("pytest's own folder is too long")

    assert socket_folder(home) == home / "run" == known_socket_folder(home)
    assert mode(home / "run") == 0o700


def test_sockets_of_a_long_home_have_a_closed_folder_that_stays(tmp_path: Path) -> None:
    """Addresses stay valid from start to start."""
    home = tmp_path / LONG
    home.mkdir()
    folder = socket_folder(home)

    assert can_hold_socket(folder)
    assert mode(folder) == 0o700
    assert socket_folder(home) == known_socket_folder(home) == folder
    folder.rmdir()


@pytest.mark.parametrize("what", ["gone", "open", "a file", "a stranger's"])
def test_a_socket_folder_that_is_not_ours_any_more_is_not_used(tmp_path: Path, what: str) -> None:
    """A name among the temporary files is anybody's after a restart of the machine."""
    home = tmp_path / LONG
    home.mkdir()
    folder = socket_folder(home)
    if what == "open":
        folder.chmod(0o755)
    elif what == "a stranger's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(folder, OWNER, OWNER)
    else:
        folder.rmdir()
    if what == "a file":
        folder.touch()

    again = socket_folder(home)

    assert again != folder
    assert mode(again) == 0o700
    again.rmdir()
    folder.unlink() if what == "a file" else folder.rmdir() if folder.exists() else None


def test_paths_that_are_all_too_long_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names both settings, and leaves nothing behind."""
    home, temporary = tmp_path / LONG, tmp_path / f"{LONG}2"
    home.mkdir()
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    with pytest.raises(ConfigurationError, match="OUTBOX_HOME or TMPDIR"):
        socket_folder(home)
    assert list(temporary.iterdir()) == []
