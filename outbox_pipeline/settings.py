"""Every setting of the pipeline, read from the environment once and validated with a sentence for each mistake.

The environment is the only source (12-factor), and the files that it names for secrets. URLs are secrets: they print
as stars, and `shown_url` is the one way to put one into a message.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from outbox_pipeline.errors import SettingsError, without_secrets
from outbox_pipeline.names import MAX_BYTES
from outbox_pipeline.secret_files import SUFFIX, SecretFiles, is_secret
from outbox_pipeline.server_urls import require_celery_url, require_encoded, require_scheme, with_driver

#: No event counts for an earlier day, whatever a clock said, unless OUTBOX_START_DATE or the ledger's first day does.
DEFAULT_START_DATE = date(2026, 1, 1)

#: Eleven days. Much longer times are mistakes, and the longest have no interval in Python or PostgreSQL.
_LONGEST_SECONDS = 1_000_000

_UI_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?)(:[0-9]{1,5})?")


class Settings(BaseSettings):
    """The settings; each field is the environment variable `OUTBOX_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="OUTBOX_", extra="ignore", frozen=True, env_ignore_empty=True)

    postgres_url: SecretStr | None = Field(
        None,
        description="PostgreSQL with the outbox, `postgresql://…`; empty: embedded",
    )
    clickhouse_url: SecretStr | None = Field(
        None, description="ClickHouse over HTTP, `http://…` or `https://…`; empty: embedded"
    )
    dagster_url: SecretStr | None = Field(
        None,
        description=(
            "PostgreSQL database for Dagster's own storage, `postgresql://…`; empty: embedded, "
            "while `OUTBOX_POSTGRES_URL` is empty too"
        ),
    )
    celery_broker: SecretStr | None = Field(
        None,
        description=(
            "Celery's broker, `redis://…`, where runs are done by `outbox worker`; `deploy/dagster/celery.yaml` takes "
            "it from here"
        ),
    )
    celery_backend: SecretStr | None = Field(
        None,
        description="Celery's result backend, such as another database of the same Redis; never `rpc://`",
    )
    dagster_ui_url: str | None = Field(
        None,
        description=(
            "Address of Dagster's UI for the links of `outbox trace`; empty: the UI that `outbox up` runs on this home"
        ),
    )
    ui_hosts: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None,
        description=(
            "Names that Dagster's UI is called by beside `127.0.0.1`, `localhost` and `[::1]`, comma "
            "separated; it answers under no other"
        ),
    )
    home: Path = Field(
        Path(".outbox"), description="Folder of the embedded engines, of Dagster's files and of the logs"
    )
    server_folder: Path = Field(
        Path("/var/lib/outbox-pipeline"),
        description="Run by root: where the embedded PostgreSQL, which refuses that, has its data",
    )
    environment: str = Field(
        "development",
        min_length=1,
        description=(
            "Environment written on each event that names none, read where it is published; at most "
            f"{MAX_BYTES['environment']} bytes"
        ),
    )
    clickhouse_table: str = Field(
        "event_log",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Table in ClickHouse that receives the events",
    )
    event_types: Annotated[frozenset[str] | None, NoDecode] = Field(
        None,
        description="Known event types, comma separated; others are quarantined; empty: every type is known",
    )
    event_modules: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None,
        description=(
            "Importable modules with `Event` classes, comma separated; contexts that do not fit theirs are quarantined"
        ),
    )
    context_max_bytes: int = Field(
        1_000_000,
        ge=1,
        description=(
            "Largest context in bytes; a larger one is refused when published from Python, quarantined when "
            "published in SQL"
        ),
    )
    batch_max_events: int = Field(
        500_000,
        ge=1,
        le=1_000_000,
        description="Limit of events in one batch; a batch takes what is pending, up to this",
    )
    batch_max_bytes: int = Field(
        160_000_000,
        ge=1,
        description=(
            "Limit of bytes of context text in one batch, names and traces beyond 200 bytes an event "
            "included; one larger event travels alone"
        ),
    )
    linger_seconds: float = Field(
        0, ge=0, le=_LONGEST_SECONDS, description="How long a batch that is not full waits for more events"
    )
    max_open_batches: int = Field(
        8, ge=1, description="Open batches, parked and replayed ones apart, at which no new ones are cut"
    )
    max_cuts_per_tick: int = Field(4, ge=1, description="Limit of batches cut in one sensor tick")
    lease_seconds: float = Field(
        30, ge=2, le=_LONGEST_SECONDS, description="How long a batch stays with a run that has gone silent"
    )
    request_seconds: float = Field(
        45,
        ge=5,
        le=_LONGEST_SECONDS,
        description="How long a run may take to start, its time in Dagster's queue not counted",
    )
    retry_base_seconds: float = Field(
        5, gt=0, le=_LONGEST_SECONDS, description="Wait after the first failed attempt; doubles with each"
    )
    retry_max_seconds: float = Field(300, gt=0, le=_LONGEST_SECONDS, description="Longest wait between attempts")
    max_attempts: int = Field(
        10,
        ge=1,
        description=(
            "Failed attempts after which a batch is parked for a person; those that a server's trouble "
            "failed count only after more than a day"
        ),
    )
    recheck_seconds: float = Field(
        600,
        ge=1,
        le=_LONGEST_SECONDS,
        description="How long after marking a batch that took several attempts is proved once more",
    )
    retention_days: int = Field(
        14,
        ge=0,
        le=36_500,
        description="Days after delivery after which an event may be pruned from PostgreSQL; `0`: kept for ever",
    )
    dagster_history_days: int = Field(
        14,
        ge=0,
        le=36_500,
        description="Days after which Dagster's step events and logs of a finished run go; `0`: kept for ever",
    )
    reconcile_days: int = Field(
        7, ge=1, le=36_500, description="Days before today that `reconcile_daily` compares every night"
    )
    freshness_hours: float | None = Field(
        None,
        ge=1,
        le=876_000,
        description=(
            "Hours without any delivery after which `event_log` is shown as not fresh; empty: a quiet outbox"
            " is no fault"
        ),
    )
    owners: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None, description="Who owns the assets in the UI: e-mail addresses or `team:name`, comma separated"
    )
    start_date: date = Field(
        DEFAULT_START_DATE,
        description="Earliest day (UTC) that events count for; the first partition where `OUTBOX_FIRST_DAY` is empty",
    )
    first_day: date | None = Field(
        None,
        description=(
            "The ledger's first day (UTC) and Dagster's first partition; `outbox up` sets it and `outbox env` prints "
            "it; empty: `OUTBOX_START_DATE`"
        ),
    )
    sensor_interval_seconds: int = Field(
        5, ge=1, description="Pause between two ticks of the sensor; Dagster looks at sensors every 5 s"
    )

    lock_timeout_seconds: float = Field(
        5, gt=0, le=_LONGEST_SECONDS, description="Longest wait for a lock on the ledger"
    )
    alert_webhook_url: SecretStr | None = Field(
        None, description="Where Dagster's `alert_sensor` posts incidents as JSON, also for Slack; empty: nowhere"
    )
    alert_lag_seconds: float = Field(
        600,
        gt=0,
        le=_LONGEST_SECONDS,
        description=(
            "Age of an undelivered event, or of a transaction that holds a gap open, above which checks fail"
            " and alerts are sent"
        ),
    )
    log_format: Literal["console", "json"] = Field("console", description="How log lines look: `console` or `json`")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe level logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the environment, and the files that it names."""
        return init_settings, env_settings, SecretFiles(settings_cls)

    @field_validator("environment")
    @classmethod
    def _check_environment(cls, value: str) -> str:
        limit = MAX_BYTES["environment"]
        if len(value.encode(errors="surrogatepass")) > limit:
            raise ValueError(f"OUTBOX_ENVIRONMENT must not be longer than {limit} bytes in UTF-8")
        return value

    @field_validator("event_types", mode="before")
    @classmethod
    def _split_event_types(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return frozenset(name for part in value.split(",") if (name := part.strip()))

    @field_validator("owners", mode="before")
    @classmethod
    def _split_owners(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        owners = tuple(name for part in value.split(",") if (name := part.strip()))
        if any(not re.fullmatch(r"team:[\w-]+|[^@\s]+@[^@\s]+\.[a-z]{2,}", owner) for owner in owners):
            raise ValueError("OUTBOX_OWNERS must be e-mail addresses or team:name, separated by commas")
        return owners

    @field_validator("ui_hosts", mode="before")
    @classmethod
    def _split_ui_hosts(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        hosts = tuple(host for part in value.lower().split(",") if (host := part.strip()))
        if not all(_UI_HOST.fullmatch(host) for host in hosts):
            raise ValueError(
                "OUTBOX_UI_HOSTS must be host names, with or without port, separated by commas, like "
                "dagster.example.org or 10.0.0.5:3000"
            )
        return hosts

    @field_validator("event_modules", mode="before")
    @classmethod
    def _split_event_modules(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        names = tuple(name for part in value.split(",") if (name := part.strip()))
        if not all(part.isidentifier() for name in names for part in name.split(".")):
            raise ValueError("OUTBOX_EVENT_MODULES must be module names separated by commas, like shop.events")
        return names

    @field_validator("postgres_url")
    @classmethod
    def _check_postgres_url(cls, value: SecretStr | None) -> SecretStr | None:
        return require_scheme(with_driver(value, "psycopg"), "postgresql+psycopg://", "OUTBOX_POSTGRES_URL")

    @field_validator("dagster_url")
    @classmethod
    def _check_dagster_url(cls, value: SecretStr | None) -> SecretStr | None:
        return require_scheme(with_driver(value, "psycopg2"), "postgresql+psycopg2://", "OUTBOX_DAGSTER_URL")

    @field_validator("clickhouse_url")
    @classmethod
    def _check_clickhouse_url(cls, value: SecretStr | None) -> SecretStr | None:
        checked = require_scheme(value, ("http://", "https://"), "OUTBOX_CLICKHOUSE_URL")
        if checked is not None:
            require_encoded(checked.get_secret_value(), "OUTBOX_CLICKHOUSE_URL")
        return checked

    @field_validator("celery_broker", "celery_backend")
    @classmethod
    def _check_celery_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None:
            require_celery_url(value.get_secret_value(), variable_of(str(info.field_name)))
        return value

    @field_validator("dagster_ui_url")
    @classmethod
    def _check_dagster_ui_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("OUTBOX_DAGSTER_UI_URL must start with http:// or https://")
        return value

    @field_validator("alert_webhook_url")
    @classmethod
    def _check_alert_webhook_url(cls, value: SecretStr | None) -> SecretStr | None:
        checked = require_scheme(value, ("http://", "https://"), "OUTBOX_ALERT_WEBHOOK_URL")
        if checked is not None and "@" in urlsplit(checked.get_secret_value()).netloc:
            raise ValueError("OUTBOX_ALERT_WEBHOOK_URL names a user: use a URL that needs none")
        return checked

    @field_validator("home", "server_folder")
    @classmethod
    def _absolute_folder(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def lease(self) -> timedelta:
        """How long a lease lasts without a heartbeat."""
        return timedelta(seconds=self.lease_seconds)

    @property
    def recheck(self) -> timedelta:
        """How long after marking a batch that took several attempts is proved once more."""
        return timedelta(seconds=self.recheck_seconds)


def variable_of(field: str) -> str:
    """Return the environment variable of a setting."""
    return f"OUTBOX_{field.upper()}"


def secret_files() -> list[str]:
    """Return each variable that may name the file of a secret, in the order of the settings."""
    return [variable_of(name) + SUFFIX for name, field in Settings.model_fields.items() if is_secret(field)]


def load_settings() -> Settings:
    """Read the settings from the environment, and secrets from the files that it names.

    Raises SettingsError naming each wrong variable and what it must be; never its value, which may be
    a secret.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in json.loads(error.json(include_input=False, include_url=False)))
        raise SettingsError(f"Wrong settings: {problems}.") from None
    except ValueError as error:
        # A source's, of a secret's file.
        raise SettingsError(f"Wrong settings: {error}.") from None


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Return each variable that looks like a setting and is none, with the setting it may have meant."""
    known = [*map(variable_of, Settings.model_fields), *secret_files()]
    unknown = sorted(name for name in environment if name.startswith("OUTBOX_") and name not in known)
    return {name: next(iter(get_close_matches(name, known, n=1, cutoff=0.8)), None) for name in unknown}


def misspelt_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return each variable that is no setting and seems to mean one, with the setting that it may have meant."""
    return {name: meant for name, meant in unknown_variables(environment).items() if meant is not None}


def _problem(item: dict[str, object]) -> str:
    location = item["loc"]
    field = str(location[0]) if isinstance(location, list) and location else "settings"
    said = str(item["msg"]).removeprefix("Value error, ")
    variable = variable_of(field)
    return said if said.startswith(variable) else f"{variable}: {said}"


@lru_cache(maxsize=1)
def default_environment() -> str:
    """Return the environment that events published without one carry; read once, publishing is a hot path."""
    return load_settings().environment


def shown_url(url: SecretStr | str | None) -> str:
    """Return *url* fit for a message: password starred out, `(not set)` when there is none."""
    if url is None:
        return "(not set)"
    text = url.get_secret_value() if isinstance(url, SecretStr) else url
    # A space in a password would end the word that is known for a URL.
    return without_secrets(re.sub(r"\s", "%20", text))


def today() -> date:
    """Return today's date in UTC."""
    return datetime.now(UTC).date()
