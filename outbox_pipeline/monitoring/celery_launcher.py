"""Runs on Celery: what an instance's `dagster.yaml` says of it, and whether broker, result backend and workers answer.

Invariants: no password is shown, nothing is sent to a queue that runs wait in, and Dagster is not imported: its file is
read as it is. Celery is imported when something is asked.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from outbox_pipeline.errors import ConfigurationError, OutboxError, first_line
from outbox_pipeline.secret_files import read_secret
from outbox_pipeline.server_urls import require_celery_url
from outbox_pipeline.settings import shown_url

#: What a worker answers with the digest of its settings; `orchestration.celery_worker` gives it to its workers.
SETTINGS_QUESTION = "outbox_settings"

#: Longest wait for a server, and for the next worker's answer.
_SECONDS = 2.0
_LAUNCHER = "CeleryRunLauncher"
#: Dagster's own values where the file names none.
_BACKEND, _QUEUE, _MAX_RUNS = "rpc://", "dagster", 10


@dataclass(frozen=True)
class CeleryLauncher:
    """The run launcher of an instance: URLs with their passwords, the queue, and how many runs work at once."""

    broker: str = field(repr=False)
    backend: str = field(repr=False)
    queue: str = _QUEUE
    max_runs: int = _MAX_RUNS


@dataclass(frozen=True)
class Worker:
    """A worker that answers: its name, for how many runs it has a process, and the digest of its settings.

    The digest is None where it was not started by `outbox worker`.
    """

    name: str
    slots: int
    settings: str | None


def read_launcher(home: Path, environment: Mapping[str, str]) -> CeleryLauncher | None:
    """Return what the `dagster.yaml` in *home* says of Celery; None when its runs are not Celery's, or without a file.

    Raises ConfigurationError where the file cannot be read, or names a variable that is not set.
    """
    import yaml

    file = home / "dagster.yaml"
    if not file.is_file():
        return None
    try:
        text = file.read_text(encoding="utf-8")
        instance = yaml.safe_load(text) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is no YAML: correct it.") from error
    launcher = _mapping(instance, "run_launcher")
    if launcher.get("class") != _LAUNCHER:
        return None
    config = _mapping(launcher, "config")
    broker = _value(config.get("broker"), environment, file)
    if broker is None:
        raise ConfigurationError(f"{file} names no broker for Celery: write one under config of run_launcher.")
    backend = _value(config.get("backend"), environment, file) or _BACKEND
    for key, url in (("broker", broker), ("backend", backend)):
        try:
            require_celery_url(url, f"{key} of run_launcher in {file}")
        except ValueError as error:
            raise ConfigurationError(f"{error}.") from None
    return CeleryLauncher(
        broker,
        backend,
        _value(config.get("default_queue"), environment, file) or _QUEUE,
        max_runs(text),
    )


def max_runs(text: str) -> int:
    """Return how many runs the text of a `dagster.yaml` lets work at once."""
    import yaml

    instance = yaml.safe_load(text)
    runs = _mapping(_mapping(instance, "concurrency"), "runs")
    found = runs.get("max_concurrent_runs", _mapping(instance, "run_queue").get("max_concurrent_runs"))
    return found if isinstance(found, int) else _MAX_RUNS


def require_celery() -> None:
    """Raise ConfigurationError when what runs on Celery need is not installed."""
    missing = next((name for name in ("dagster_celery", "celery", "redis") if find_spec(name) is None), None)
    if missing is not None:
        raise ConfigurationError(
            f"Runs on Celery need the extra 'celery', because {missing} is not installed: install "
            "outbox-pipeline[celery]."
        )


def require_answers(launcher: CeleryLauncher) -> None:
    """Raise ConfigurationError when the result backend is of no use, or when it or the broker does not answer."""
    if launcher.backend.startswith("rpc"):
        raise ConfigurationError(
            "Celery's result backend is rpc://, from which Dagster's daemon cannot read how a run goes on, so it takes "
            "each run for dead: give dagster.yaml a backend such as redis://host:6379/1."
        )
    with _connected(launcher) as (app, connection):
        _ask("broker", launcher.broker, lambda: connection.ensure_connection(max_retries=1, timeout=_SECONDS))
        _ask("result backend", launcher.backend, lambda: app.AsyncResult("outbox-doctor").state)


def ask_workers(launcher: CeleryLauncher) -> list[Worker]:
    """Return the workers that answer within seconds, by name. Raises ConfigurationError when the broker does not."""
    with _connected(launcher) as (app, connection):

        def replies(question: str, names: list[str]) -> dict[str, Any]:
            limit = len(names) or None
            inspect = app.control.inspect(names or None, timeout=_SECONDS, connection=connection, limit=limit)
            return _ask("broker", launcher.broker, lambda: inspect._request(question)) or {}

        names = sorted(replies("ping", []))
        if not names:
            return []
        stats, digests = replies("stats", names), replies(SETTINGS_QUESTION, names)
    return [Worker(name, _slots(stats.get(name)), _digest(digests.get(name))) for name in names]


@contextmanager
def _connected(launcher: CeleryLauncher) -> Iterator[tuple[Any, Any]]:
    from celery import Celery

    app = Celery("outbox", broker=launcher.broker, backend=launcher.backend, set_as_current=False)
    app.conf.update(
        broker_connection_timeout=_SECONDS,
        broker_transport_options={"socket_timeout": _SECONDS, "socket_connect_timeout": _SECONDS},
        redis_socket_timeout=_SECONDS,
        redis_socket_connect_timeout=_SECONDS,
        redis_retry_on_timeout=False,
    )
    try:
        connection = _ask("broker", launcher.broker, app.connection_for_write)
        with connection:
            yield app, connection
    finally:
        app.close()


def _ask(what: str, url: str, ask: Any) -> Any:
    try:
        return ask()
    except OutboxError:
        raise
    except Exception as error:  # noqa: BLE001 - each kind of broker has a driver with errors of its own
        raise ConfigurationError(
            f"Celery's {what} at {shown_url(url)} does not answer ({first_line(error, limit=200)}): start it, or "
            "correct its URL."
        ) from None


def _mapping(of: Any, name: str) -> dict[str, Any]:
    found = of.get(name) if isinstance(of, dict) else None
    return found if isinstance(found, dict) else {}


def _value(given: Any, environment: Mapping[str, str], file: Path) -> str | None:
    """Return a string of Dagster's file, which may name a variable instead."""
    if not isinstance(given, dict):
        return None if given is None else str(given)
    name = str(given.get("env"))
    try:
        value = read_secret(environment, name)
    except ValueError as error:
        raise ConfigurationError(f"{error}.") from None
    if value is None:
        raise ConfigurationError(f"{name} is not set, and {file} takes Celery's servers from it: set it.")
    return value


def _slots(stats: Any) -> int:
    found = _mapping(stats, "pool").get("max-concurrency")
    return found if isinstance(found, int) else 0


def _digest(reply: Any) -> str | None:
    found = reply.get("settings") if isinstance(reply, dict) else None
    return found if isinstance(found, str) else None
