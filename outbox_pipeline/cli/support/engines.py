"""The settings a command works with: URLs that are set, or the embedded engines for as long as it runs.

Invariant: engines are joined or started only for a URL that is not set; a real server's schema is never made here.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from outbox_pipeline.errors import ConfigurationError, OutboxError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from outbox_pipeline.embedded.engines import EngineUrls
    from outbox_pipeline.embedded.keeper import EngineKeeper
    from outbox_pipeline.settings import Settings


#: Drivers that log an error and raise it too; the sentence of the error is enough.
_TALKATIVE = ("clickhouse_connect", "urllib3")


@contextmanager
def ready_settings(
    *, postgres: bool = True, clickhouse: bool = True, on_up: Callable[[str], None] = lambda _: None
) -> Iterator["Settings"]:
    """Yield settings with a URL for each store asked for; an embedded store that is new gets its schema first.

    The table in ClickHouse is made where the ledger is asked for too, which knows whether it was there before. *on_up*
    is told what is up: PostgreSQL, ClickHouse, schema. Raises ConfigurationError for wrong settings, for engines that
    are not installed or do not start, and when the table was there before.
    """
    with engine_settings(postgres=postgres, clickhouse=clickhouse, on_up=on_up) as (given, settings):
        if postgres and given.postgres_url is None:
            _ensure_schema(settings)
        if postgres and clickhouse and given.clickhouse_url is None:
            _ensure_table(settings)
        on_up("schema")
        yield settings


@contextmanager
def engine_settings(
    *, postgres: bool = True, clickhouse: bool = True, on_up: Callable[[str], None] = lambda _: None
) -> Iterator[tuple["Settings", "Settings"]]:
    """Yield the settings as the environment has them, and with the URLs of embedded engines filled in."""
    given = _read_settings()
    _require_own_urls(given)
    require_no_stale_urls(given)
    wants_postgres = postgres and given.postgres_url is None
    wants_clickhouse = clickhouse and given.clickhouse_url is None
    if not (wants_postgres or wants_clickhouse):
        yield given, given
        return
    require_embedded()
    from outbox_pipeline.embedded.engines import embedded_engines

    if not (given.home / "lock").exists():
        typer.echo(f"A new outbox is made in {given.home.absolute()}; for another one, set OUTBOX_HOME.", err=True)
    with embedded_engines(given.home, postgres=wants_postgres, clickhouse=wants_clickhouse, on_up=on_up) as urls:
        yield given, with_urls(given, urls)


@contextmanager
def reachable_settings() -> Iterator[tuple["Settings", dict[str, str]]]:
    """Yield settings with the URLs of embedded engines, and why `postgres` or `clickhouse` is without a server.

    Waits for no engine that runs already, whether or not it answers. Raises ConfigurationError for wrong settings.
    """
    given = _read_settings()
    failed: dict[str, str] = {}
    with ExitStack() as engines:
        for name, url in (("postgres", given.postgres_url), ("clickhouse", given.clickhouse_url)):
            try:
                if name == "postgres":
                    _require_own_urls(given)
                    require_no_stale_urls(given)
                if url is None:
                    require_embedded()
                    from outbox_pipeline.embedded.engines import reached_engine

                    engines.enter_context(reached_engine(given.home, name))
            except OutboxError as error:
                failed[name] = str(error)
        yield running_settings(), failed


def _read_settings() -> "Settings":
    from outbox_pipeline.logs import configure_logs
    from outbox_pipeline.settings import load_settings

    given = load_settings()
    configure_logs(given)
    for driver in _TALKATIVE:
        logging.getLogger(driver).setLevel(logging.CRITICAL)
    return given


def engine_keeper() -> "EngineKeeper | None":
    """Return what starts the embedded engines again that this environment has no URL for; None when it has all."""
    from outbox_pipeline.settings import load_settings

    given = load_settings()
    wants_postgres, wants_clickhouse = given.postgres_url is None, given.clickhouse_url is None
    if not (wants_postgres or wants_clickhouse):
        return None
    from outbox_pipeline.embedded.keeper import EngineKeeper

    return EngineKeeper(given.home, postgres=wants_postgres, clickhouse=wants_clickhouse)


def ledger_engine(settings: "Settings") -> "Engine":
    """Return an engine for the few transactions of a command, which keeps no connection between them."""
    from outbox_pipeline.postgres.engine import create_outbox_engine

    return create_outbox_engine(settings, pooled=False)


def running_settings() -> "Settings":
    """Return settings with the URLs of the embedded engines that run now; starts nothing, so URLs may be missing.

    URLs that come from `outbox env` on another home are as good as missing.
    """
    from outbox_pipeline.settings import load_settings

    given = load_settings()
    if other_home(given) is not None:
        given = given.model_copy(update={"postgres_url": None, "clickhouse_url": None, "dagster_url": None})
    try:
        require_embedded()
    except ConfigurationError:
        return given
    from outbox_pipeline.embedded.engines import running_engines

    return with_urls(given, running_engines(given.home))


def embedded_pids() -> dict[str, int]:
    """Return the process ids of the embedded engines that commands here use, by `postgres` and `clickhouse`."""
    from outbox_pipeline.settings import load_settings

    given = load_settings()
    try:
        require_embedded()
    except ConfigurationError:
        return {}
    from outbox_pipeline.embedded.engines import engine_pids

    pids = engine_pids(given.home)
    return {name: pid for name, pid in pids.items() if getattr(given, f"{name}_url") is None}


def with_running_clickhouse(settings: "Settings") -> "Settings":
    """Return settings with the URL of the embedded ClickHouse where none is set and it runs; starts nothing."""
    if settings.clickhouse_url is not None:
        return settings
    try:
        require_embedded()
        from outbox_pipeline.embedded.engines import running_engines

        return with_urls(settings, running_engines(settings.home))
    except ConfigurationError:
        return settings


def with_urls(settings: "Settings", urls: "EngineUrls") -> "Settings":
    """Return *settings* with the engines' URLs where none is set."""
    from pydantic import SecretStr

    found = {"postgres_url": urls.postgres, "dagster_url": urls.dagster, "clickhouse_url": urls.clickhouse}
    missing = {name: SecretStr(url) for name, url in found.items() if url and getattr(settings, name) is None}
    return settings.model_copy(update=missing)


def given_urls(settings: "Settings") -> tuple[dict[str, str], list[str]]:
    """Return the URLs that are there by variable name, passwords included, and the names of those that are not."""
    urls = {
        "OUTBOX_POSTGRES_URL": settings.postgres_url,
        "OUTBOX_CLICKHOUSE_URL": settings.clickhouse_url,
        "OUTBOX_DAGSTER_URL": settings.dagster_url,
    }
    given = {name: url.get_secret_value() for name, url in urls.items() if url is not None}
    return given, [name for name in urls if name not in given]


def other_home(settings: "Settings") -> Path | None:
    """Return the home whose embedded engines the URLs lead to where that is not OUTBOX_HOME, else None.

    It is known by DAGSTER_HOME, which `outbox env` exports beside the URLs.
    """
    exported = os.environ.get("DAGSTER_HOME")
    home = Path(exported).parent if exported else settings.home
    if home.resolve() == settings.home.expanduser().resolve() or not (home / "lock").exists():
        return None
    try:
        require_embedded()
    except ConfigurationError:
        return None
    from outbox_pipeline.embedded.engines import serves

    urls = given_urls(settings)[0]
    found = serves(home, postgres=urls.get("OUTBOX_POSTGRES_URL"), clickhouse=urls.get("OUTBOX_CLICKHOUSE_URL"))
    return home if found else None


def _require_own_urls(settings: "Settings") -> None:
    home = other_home(settings)
    if home is not None:
        raise ConfigurationError(
            f"The URLs come from 'outbox env' on {home}, and OUTBOX_HOME is {settings.home}: for that one run "
            f'eval "$(outbox env)" again, for the other set OUTBOX_HOME to {home}.'
        )


def require_no_stale_urls(settings: "Settings") -> None:
    """Raise ConfigurationError where the URL of PostgreSQL leads to an embedded one of this home that has stopped."""
    url = settings.postgres_url.get_secret_value() if settings.postgres_url else ""
    if "@/" not in url:
        return
    require_embedded()
    from outbox_pipeline.embedded.engines import leads_to, running_engines

    if leads_to(url, settings.home) and running_engines(settings.home).postgres is None:
        raise ConfigurationError(
            "The URLs come from 'outbox env', and the engines they lead to have stopped: start them with 'outbox up' "
            "in another shell, or unset OUTBOX_POSTGRES_URL OUTBOX_CLICKHOUSE_URL OUTBOX_DAGSTER_URL."
        )


def require_embedded() -> None:
    """Raise ConfigurationError when the embedded engines are not installed."""
    try:
        import outbox_pipeline.embedded.engines  # noqa: F401 - whether it can be imported is the question
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "OUTBOX_POSTGRES_URL or OUTBOX_CLICKHOUSE_URL is not set and the embedded engines are not installed: "
            "set both, or pip install 'outbox-pipeline[embedded]'."
        ) from error


def _ensure_schema(settings: "Settings") -> None:
    from outbox_pipeline.postgres.engine import ledger_transaction
    from outbox_pipeline.postgres.schema import migrate, schema_version

    engine = ledger_engine(settings)
    with ledger_transaction(engine) as connection:
        is_new = schema_version(connection) is None
    if is_new:
        migrate(engine)


def _ensure_table(settings: "Settings") -> None:
    from outbox_pipeline.clickhouse.client import clickhouse_client
    from outbox_pipeline.operations.log import make_log

    with clickhouse_client(settings) as client:
        make_log(ledger_engine(settings), client)
