"""`outbox adopt` happens once, on a yes, whole or not at all."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from outbox_pipeline.cli import main
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish
from tests.fixtures.lives import Restore, assert_whole, back_up, everything, mixed_lives

pytestmark = pytest.mark.embedded_only


def test_adopting_again_changes_nothing(stores: Stores, restore: Restore, backup: Path) -> None:
    """A ledger that is its cluster's own is left as it is."""
    publish(stores.engine, 3)
    here = restore(back_up(stores, backup))
    relay(stores, until_empty=True)
    adopt(here)
    before = everything(here)

    again = adopt(here)

    assert again.was_own
    assert everything(here) == before


def test_a_dry_run_changes_nothing_and_tells_the_same(stores: Stores, restore: Restore, backup: Path) -> None:
    """What a dry run says is what adopting then does."""
    here, _ = mixed_lives(stores, restore, backup)
    before = everything(here)

    found = adopt(here, dry_run=True)
    after = everything(here)
    done = adopt(here)

    assert after == before
    assert found == replace(done, is_dry_run=True)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run `outbox adopt` on a life and return exit code, stdout and stderr."""

    def run(life: Stores, *arguments: str, clickhouse_url: SecretStr | None = None) -> tuple[int, str, str]:
        urls = {"POSTGRES": life.settings.postgres_url, "CLICKHOUSE": clickhouse_url or life.settings.clickhouse_url}
        for name, url in urls.items():
            assert url
            monkeypatch.setenv(f"OUTBOX_{name}_URL", url.get_secret_value())
        result = CliRunner().invoke(main.app, ["adopt", *arguments])
        return result.exit_code, result.stdout, result.stderr

    return run


def test_the_command_needs_a_yes(
    stores: Stores, restore: Restore, backup: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    """Without a terminal and --yes nothing is adopted; with --yes it is, and a second call says that it was."""
    publish(stores.engine, 3)
    here = restore(back_up(stores, backup))
    relay(stores, until_empty=True)
    before = everything(here)

    refused = command(here)
    after = everything(here)
    adopted = command(here, "--yes")
    again = command(here)

    assert refused[:2] == (2, "")
    assert "3 events in 1 batch" in refused[2]
    assert "dry run" not in refused[2]
    assert refused[2].splitlines()[-1] == (
        "There is no terminal to ask on: when the old instance is stopped for good and this copy shall take over, "
        "repeat with --yes."
    )
    assert after == before
    assert adopted[0] == 0
    assert "3 events in 1 batch" in adopted[1]
    assert again[0] == 0
    assert "nothing to adopt" in again[1]
    assert_whole(here)


@pytest.mark.parametrize(("answer", "is_adopted"), [("n", False), ("y", True)])
def test_on_a_terminal_it_shows_what_it_found_and_asks(
    stores: Stores, restore: Restore, backup: Path, answer: str, is_adopted: bool
) -> None:
    """Only a yes adopts, and before the question stands what would be done."""
    publish(stores.engine, 3)
    here = restore(back_up(stores, backup))
    relay(stores, until_empty=True)
    assert here.settings.postgres_url
    assert here.settings.clickhouse_url
    urls = {
        "OUTBOX_POSTGRES_URL": here.settings.postgres_url.get_secret_value(),
        "OUTBOX_CLICKHOUSE_URL": here.settings.clickhouse_url.get_secret_value(),
    }
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "outbox_pipeline.cli.main", "adopt"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **urls},
        stdin=theirs,
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(ours)
    os.close(theirs)

    assert "3 events in 1 batch" in done.stderr
    assert "Is the old instance stopped for good?" in done.stderr
    assert "dry run" not in done.stderr
    assert is_adopted or done.stdout == ""
    assert done.returncode == (0 if is_adopted else 1)
    assert adopt(here, dry_run=True).was_own is is_adopted


def test_without_clickhouse_nothing_is_adopted(
    stores: Stores, restore: Restore, backup: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    """What the old instance delivered is not guessed: with ClickHouse away it is one sentence, and nothing changes."""
    publish(stores.engine, 3)
    here = restore(back_up(stores, backup))
    before = everything(here)

    code, said, complaint = command(here, "--yes", clickhouse_url=SecretStr("http://127.0.0.1:1"))

    assert (code, said) == (1, "")
    assert "cannot be reached" in complaint
    assert complaint.count("\n") == 1
    assert everything(here) == before
