"""Runs on Celery: what dagster.yaml says of it, and what worker and doctor say when something is missing."""

import os
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from outbox_pipeline.cli.up import _celery_plan
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.monitoring.celery_launcher import CeleryLauncher, Worker, read_launcher, require_answers
from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.monitoring.doctor_celery import check_worker_settings, check_workers, examine_celery
from outbox_pipeline.monitoring.shared_settings import settings_digest
from outbox_pipeline.orchestration.celery_worker import _application, default_memory_mb
from outbox_pipeline.orchestration.host.broker import broker_environment
from outbox_pipeline.orchestration.host.instance import instance_text
from outbox_pipeline.orchestration.host.stack import own_broker
from outbox_pipeline.settings import Settings
from tests.fixtures.commands import run_outbox

ROOT = Path(__file__).parents[2]
DEPLOYED = ROOT / "deploy" / "dagster" / "celery.yaml"
URLS = {
    "OUTBOX_CELERY_BROKER": "redis://:secret@127.0.0.1:1/0",
    "OUTBOX_CELERY_BACKEND": "redis://:secret@127.0.0.1:1/1",
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A DAGSTER_HOME as a deployment on Celery has it."""
    (tmp_path / "dagster.yaml").write_bytes(DEPLOYED.read_bytes())
    return tmp_path


@pytest.fixture
def deployed(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a worker there, whose broker does not answer."""
    urls = {"POSTGRES": "postgresql://db/shop", "CLICKHOUSE": "http://ch", "DAGSTER": "postgresql://db/dagster"}
    for name, value in {**URLS, **{f"OUTBOX_{name}_URL": url for name, url in urls.items()}}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home


def test_the_deployed_file_is_the_product_s_with_another_launcher() -> None:
    """In limits, storage, monitoring and retention both files say the same, and `outbox up --runs celery` uses it."""
    product, deployed = (yaml.safe_load(path.read_text()) for path in (ROOT / "dagster.yaml", DEPLOYED))

    assert deployed.pop("run_launcher")["class"] == "CeleryRunLauncher"
    assert deployed == product
    assert DEPLOYED.read_text(encoding="utf-8") == instance_text(on_celery=True)
    assert (files("outbox_pipeline.orchestration") / "celery.yaml").is_file()


def test_dagster_reads_the_deployed_file_as_we_do(deployed: Path) -> None:
    """Broker and backend are those of the variables, and opening the launcher asks neither them nor the storage."""
    launcher = read_launcher(deployed, URLS)
    app = _application(deployed)

    assert launcher is not None
    assert (app.conf.broker_url, app.conf.result_backend) == tuple(URLS.values())
    assert (launcher.broker, launcher.backend, launcher.queue, launcher.max_runs) == (*URLS.values(), "dagster", 4)
    assert "secret" not in repr(launcher)


def test_broker_and_backend_may_lie_in_files(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher, the worker and `outbox doctor` read them there, and what is missing is named with its file."""
    for name, url in URLS.items():
        (tmp_path / name).write_text(f"{url}\n", encoding="utf-8")
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / name))
    launcher, conf = read_launcher(home, os.environ), _application(home).conf
    (tmp_path / "OUTBOX_CELERY_BROKER").unlink()

    assert launcher is not None
    assert (launcher.broker, launcher.backend) == (conf.broker_url, conf.result_backend) == tuple(URLS.values())
    with pytest.raises(ConfigurationError, match=r"OUTBOX_CELERY_BROKER_FILE names .*, which is no file, or not there"):
        read_launcher(home, os.environ)


def test_a_worker_of_dagster_is_set_as_docs_say(deployed: Path) -> None:
    """No task waits in a worker, none is acknowledged late, and the broker's absence is waited out for ever."""
    conf = _application(deployed).conf

    assert conf.worker_disable_prefetch
    assert not conf.task_acks_late
    assert conf.broker_connection_max_retries is None


def test_a_process_is_kept_after_the_largest_batch() -> None:
    """The bound is above what one of OUTBOX_BATCH_MAX_BYTES makes a run hold, else each run would need a new one."""
    assert default_memory_mb(Settings()) == 1140
    assert default_memory_mb(Settings(batch_max_bytes=1_000_000_000)) == 4500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run_launcher: [", "is no YAML"),
        ("run_launcher: {class: CeleryRunLauncher, config: {}}", "names no broker"),
        ("run_launcher: {class: CeleryRunLauncher, config: {broker: {env: NOT_SET}}}", "NOT_SET is not set"),
    ],
)
def test_a_file_that_says_too_little_is_told(tmp_path: Path, text: str, said: str) -> None:
    """A sentence names the file and what is missing."""
    (tmp_path / "dagster.yaml").write_text(text)

    with pytest.raises(ConfigurationError, match=said):
        read_launcher(tmp_path, {})


@pytest.mark.parametrize("mark", ["#", "/", "@", "?"])
def test_a_password_that_is_not_encoded_is_not_shown(
    deployed: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    """Read as it stands its begin would be a port, and the words of the error; in the variable as in the file."""
    url = f"redis://:s3cr{mark}t@127.0.0.1:1/0"
    written = f"run_launcher: {{class: CeleryRunLauncher, config: {{broker: '{url}'}}}}"
    monkeypatch.setenv("OUTBOX_CELERY_BROKER", url)
    of_variable = run_outbox("worker").stderr
    monkeypatch.delenv("OUTBOX_CELERY_BROKER")
    (deployed / "dagster.yaml").write_text(written)
    of_file = run_outbox("worker").stderr

    assert "OUTBOX_CELERY_BROKER" in of_variable
    assert "broker of run_launcher" in of_file
    assert "%23" in of_variable
    assert "%23" in of_file
    assert "s3cr" not in of_variable + of_file


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://:a%23b@h:26379;sentinel://:a%23b@i:26379",
        "cache+memcached://h:11211;i:11211/",
        "mongodb://u:a%23b@h:27017,i:27017/jobs",
        "amqp://u:p@h:5672//",
        "redis+socket:///home/a%20b/run/broker.sock?virtual_host=0",
    ],
)
def test_urls_of_each_kind_are_taken(url: str) -> None:
    """Celery's servers are of many kinds, several of them in one URL included."""
    assert Settings(celery_broker=SecretStr(url), celery_backend=SecretStr(url)).celery_broker


@pytest.mark.parametrize("text", ["", "run_launcher: {class: K8sRunLauncher}", "run_launcher: no", "- a list"])
def test_other_launchers_are_none_of_celery_s(tmp_path: Path, text: str) -> None:
    """The doctor has nothing to say of Celery there."""
    (tmp_path / "dagster.yaml").write_text(text)

    assert read_launcher(tmp_path, {}) is None
    assert list(examine_celery(Settings(), {"DAGSTER_HOME": str(tmp_path)})) == []
    assert list(examine_celery(Settings(), {})) == []


def test_a_backend_that_monitoring_cannot_read_is_refused(tmp_path: Path) -> None:
    """Dagster's default, with which each run counts as dead."""
    (tmp_path / "dagster.yaml").write_text("run_launcher: {class: CeleryRunLauncher, config: {broker: 'redis://h'}}")

    launcher = read_launcher(tmp_path, {})
    assert launcher is not None
    with pytest.raises(ConfigurationError, match="rpc://"):
        require_answers(launcher)


def test_the_doctor_names_a_broker_that_is_away(deployed: Path) -> None:
    """Without its password, and asks no worker over it."""
    found = list(examine_celery(Settings(), {**URLS, "DAGSTER_HOME": str(deployed)}))

    assert [check.ok for check in found] == [False, None, None]
    assert "redis://:***@127.0.0.1:1/0 does not answer" in found[0].message
    assert "secret" not in found[0].message


def worker(name: str = "outbox-1@a", *, slots: int = 4, settings: str | None = None) -> Worker:
    """Return a worker as it answers, by default with the settings of this environment."""
    return Worker(name, slots, settings_digest(Settings()) if settings is None else settings)


LAUNCHER = CeleryLauncher("redis://h/0", "redis://h/1", max_runs=4)
FEWER = settings_digest(Settings(lease_seconds=31, batch_max_events=5))


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (check_workers(LAUNCHER, []), ["No Celery worker answers", "outbox worker"]),
        (check_workers(LAUNCHER, [worker(slots=3)]), ["1 worker with 3 places", "max_concurrent_runs is 4"]),
        (
            check_worker_settings(Settings(), [worker(), worker("outbox-2@b", settings=FEWER)]),
            ["outbox-2@b has another value of OUTBOX_BATCH_MAX_EVENTS, OUTBOX_LEASE_SECONDS: give"],
        ),
        (check_worker_settings(Settings(), [worker(settings="0000")]), ["another version of outbox-pipeline"]),
        (check_worker_settings(Settings(), [Worker("celery@a", 4, None)]), ["not started by 'outbox worker'"]),
    ],
)
def test_each_fault_is_named_with_what_to_do(check: Check, said: list[str]) -> None:
    """A finding says which worker is at fault and the next step."""
    assert check.ok is False
    assert [words for words in said if words not in check.message] == []


def test_enough_workers_with_equal_settings_are_fine() -> None:
    """Their places together are what counts."""
    crew = [worker(slots=2), worker("outbox-2@b", slots=2)]

    assert check_workers(LAUNCHER, crew).message == "2 workers with 4 places for runs answer; max_concurrent_runs is 4."
    assert check_worker_settings(Settings(), crew).ok
    assert check_worker_settings(Settings(), []).ok is None


def told(*arguments: str) -> str:
    """Return the one sentence that a refused command says."""
    result = run_outbox(*arguments)
    assert result.exit_code == 1, result.output
    return result.stderr


def test_a_worker_without_its_extra_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    """An install without Celery has the command, and a sentence."""
    monkeypatch.setitem(sys.modules, "dagster_celery", None)

    assert "outbox-pipeline[celery]" in told("worker")
    assert "outbox-pipeline[celery]" in told("up", "--runs", "celery")


def test_the_broker_of_a_stack_that_has_ended_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that has it from `outbox env` is not told that it is away."""
    (tmp_path / "redis-server").touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("OUTBOX_HOME", str(tmp_path))
    for name, url in own_broker(tmp_path).items():
        monkeypatch.setenv(name, url)

    assert _celery_plan(2).has_broker


def test_a_worker_says_what_it_misses(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs, DAGSTER_HOME, a launcher that is Celery's, a broker that answers: each has a sentence of its own."""
    assert "redis://:***@127.0.0.1:1/0 does not answer" in told("worker")
    (deployed / "dagster.yaml").write_bytes((ROOT / "dagster.yaml").read_bytes())
    assert "does not start runs by Celery" in told("worker")
    monkeypatch.setenv("DAGSTER_HOME", "elsewhere")
    assert "no absolute path" in told("worker")
    monkeypatch.delenv("DAGSTER_HOME")
    assert "DAGSTER_HOME is not set" in told("worker")
    monkeypatch.delenv("OUTBOX_DAGSTER_URL")
    assert "OUTBOX_DAGSTER_URL not set" in told("worker")


def test_up_says_what_it_misses_for_celery(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything is started: a broker of one's own with its backend, or the program for one."""
    monkeypatch.setenv("OUTBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OUTBOX_CELERY_BROKER", URLS["OUTBOX_CELERY_BROKER"])
    assert "set both or none" in told("up", "--runs", "celery")
    monkeypatch.setenv("OUTBOX_CELERY_BACKEND", URLS["OUTBOX_CELERY_BACKEND"])
    assert "does not answer" in told("up", "--runs", "celery")
    for name in URLS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "redis-server is not installed" in told("up", "--runs", "celery")
    assert not (tmp_path / "home").exists()


def test_the_broker_of_a_home_is_reached_by_its_socket() -> None:
    """Whatever is in the path; broker and backend are two databases of it."""
    found = broker_environment(Path("/home/a b/run/broker.sock"))

    assert found == {
        "OUTBOX_CELERY_BROKER": "redis+socket:///home/a%20b/run/broker.sock?virtual_host=0",
        "OUTBOX_CELERY_BACKEND": "redis+socket:///home/a%20b/run/broker.sock?virtual_host=1",
    }
