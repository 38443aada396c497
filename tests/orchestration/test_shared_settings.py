"""The digest of the settings that a run and what asked for it must share."""

from datetime import date
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr

from outbox_pipeline.monitoring.shared_settings import other_settings, settings_digest
from outbox_pipeline.orchestration.definitions import build_definitions
from outbox_pipeline.orchestration.shared_settings import SETTINGS_TAG, settings_tag, tell_other_settings
from outbox_pipeline.settings import Settings, today
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.runs import deliver_job, requested
from tests.fixtures.sensors import pipeline, tick

HERE = Settings(
    postgres_url=SecretStr("postgresql+psycopg://app:secret@db:5432/shop?sslmode=require&password=more"),
    clickhouse_url=SecretStr("https://app:secret@ch:8443/events?ca_cert=/a.pem"),
    dagster_url=SecretStr("postgresql+psycopg2://app:secret@db/dagster"),
    alert_webhook_url=SecretStr("https://hooks.example.org/secret"),
    celery_broker=SecretStr("redis://:secret@redis:6379/0"),
    celery_backend=SecretStr("redis://:secret@redis:6379/1"),
)

#: Another place for each URL that both sides must share.
ELSEWHERE = {
    "postgres_url": "postgresql+psycopg://app:secret@db:5433/shop",
    "clickhouse_url": "https://app:secret@ch:8443/other",
}

#: What a process or a machine has for itself.
OWN = {"dagster_url", "alert_webhook_url", "dagster_ui_url", "ui_hosts", "home", "server_folder", "first_day"} | {
    *("celery_broker", "celery_backend"),
    *("freshness_hours", "owners", "sensor_interval_seconds", "alert_lag_seconds", "log_format", "log_level"),
}


def other(name: str, value: Any) -> Any:
    """Return another value of a setting."""
    if name in ELSEWHERE:
        return SecretStr(ELSEWHERE[name])
    if isinstance(value, date):
        return date(2025, 1, 1)
    if isinstance(value, (int, float)):
        return value + 1
    return "other" if isinstance(value, str) else ("other",)


@pytest.mark.parametrize("name", sorted(Settings.model_fields.keys() - OWN))
def test_a_setting_that_differs_is_named(name: str) -> None:
    """Each one that both sides must share, and no other."""
    there = HERE.model_copy(update={name: other(name, getattr(HERE, name))})

    assert other_settings(settings_digest(there), HERE) == [f"OUTBOX_{name.upper()}"]


@pytest.mark.parametrize("name", sorted(OWN))
def test_what_one_side_has_for_itself_is_no_difference(name: str) -> None:
    """Its own folders, logs and alerts."""
    there = HERE.model_copy(update={name: "other"})

    assert settings_digest(there) == settings_digest(HERE)


def test_no_secret_is_in_it() -> None:
    """Users, passwords, tokens and parameters of URLs change nothing, so nothing can be told of them."""
    there = {
        "postgres_url": "postgresql+psycopg://other:word@db:5432/shop?sslpassword=other",
        "clickhouse_url": "https://other:word@ch:8443/events?client_cert=/other.pem",
        "dagster_url": "postgresql+psycopg2://other:word@elsewhere/dagster",
        "alert_webhook_url": "https://hooks.example.org/other",
        "celery_broker": "redis://:other@elsewhere:6379/0",
        "celery_backend": "redis://:other@elsewhere:6379/1",
    }
    secrets = {name for name in Settings.model_fields if isinstance(getattr(HERE, name), SecretStr)}

    assert secrets == set(there)
    assert settings_digest(HERE.model_copy(update={n: SecretStr(url) for n, url in there.items()})) == (
        settings_digest(HERE)
    )


@pytest.mark.parametrize(
    ("name", "urls"),
    [
        (
            "postgres_url",
            [
                "postgresql+psycopg://app@db/shop",
                "postgresql+psycopg://app@db:5432/shop?connect_timeout=5",
                "postgresql+psycopg:///shop?host=db",
                "postgresql+psycopg://app@/shop?port=5432&host=db",
            ],
        ),
        (
            "clickhouse_url",
            ["http://ch", "http://ch/", "http://CH:8123", "http://ch:8123/default", "http://ch/default/"],
        ),
        ("clickhouse_url", ["https://ch/events", "https://ch:8443/events"]),
    ],
)
def test_a_place_that_is_written_otherwise_is_no_difference(name: str, urls: list[str]) -> None:
    """A default that one side names leads to the same server and database."""
    digests = {settings_digest(HERE.model_copy(update={name: SecretStr(url)})) for url in urls}

    assert len(digests) == 1


def test_a_digest_of_another_version_is_known() -> None:
    """One that has other settings is told as such, whatever their values."""
    assert other_settings("0000" + settings_digest(HERE)[4:], HERE) is None
    assert other_settings("", HERE) is None


def test_a_tick_and_every_job_say_by_which_settings_they_ask(instance: dg.DagsterInstance, stores: Stores) -> None:
    """A run of outbox_sensor has those of the tick, and one that a person or a schedule starts the code location's."""
    publish(stores.engine, 3)
    (request,) = tick(instance, pipeline(stores)).run_requests or []
    repository = build_definitions().get_repository_def()
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]

    assert request.tags[SETTINGS_TAG] == settings_tag(pipeline(stores).settings)[SETTINGS_TAG]
    assert {len(job.run_tags[SETTINGS_TAG]) for job in jobs} == {len(settings_digest(HERE))}


def warnings(instance: dg.DagsterInstance, stores: Stores, tags: dict[str, str]) -> list[str]:
    """Deliver what is pending by a run that was asked for with these tags, and return what it warns of."""
    publish(stores.engine, 3)
    result = deliver_job().execute_in_process(
        instance=instance, run_config=requested(stores), partition_key=today().isoformat(), tags=tags
    )
    assert result.success
    return [entry.message for entry in instance.all_logs(result.run_id) if entry.level == 30]


def test_a_run_with_other_settings_says_so_and_goes_by_its_own(
    instance: dg.DagsterInstance, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence names what differs and what to do; the events are delivered."""
    asked_with = settings_tag(pipeline(stores).settings)
    assert warnings(instance, stores, asked_with) == []
    monkeypatch.setenv("OUTBOX_BATCH_MAX_EVENTS", "17")
    monkeypatch.setenv("OUTBOX_EVENT_TYPES", "one, order_placed")

    (said,) = warnings(instance, stores, asked_with)

    assert "had other values of OUTBOX_BATCH_MAX_EVENTS, OUTBOX_EVENT_TYPES: give" in said
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_run_that_is_executed_again_has_the_tags_of_the_one_before() -> None:
    """What its settings were then says nothing of what asks now."""
    tags = settings_tag(HERE)
    here = HERE.model_copy(update={"batch_max_events": 17})
    said: list[str] = []
    log: Any = SimpleNamespace(warning=said.append)

    for parent in (None, "the run before"):
        run = dg.DagsterRun(job_name="any", tags=tags, parent_run_id=parent, root_run_id=parent)
        tell_other_settings(run, here, log)

    assert len(said) == 1
