"""Dagster's storage in PostgreSQL, with connections that are kept.

dagster-postgres opens a connection for every statement of a run, a tick and the daemon, and each is a new process in
PostgreSQL: some fifteen a second while nothing happens, a fifth of two cores while a backlog is delivered. Here each
process of Dagster keeps one, opens more only while it needs them at once, and looks before each use whether its
connection still lives. Its sessions begin with what Dagster takes for granted, whatever a role or a database sets.
Where its URL is `env: NAME`, the variable `NAME_FILE` may name a file that holds the URL.

Dagster makes its tables when a process starts. Where they are dropped while processes run, the first statement that
misses one makes them again here, so that ticks go on: with an empty history, which is Dagster's and not the ledger's.

Invariant: nothing is SET in a session, which a pooler would hand to the next client as it is.
"""

import threading
import time
from functools import partial
from typing import Any

import dagster as dg
from dagster._config import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import create_pg_engine, get_token_provider_from_config, pg_url_from_config
from sqlalchemy import Engine, event, inspect, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from outbox_pipeline.logs import log
from outbox_pipeline.orchestration.host.url_source import UrlSource
from outbox_pipeline.postgres.dagster_storage import is_missing_table, refuses_options, storage_url

#: By the URL that was given; with the one that is used. Instances come and go with every tick.
_engines: dict[str, tuple[str, Engine]] = {}

#: Between two attempts of a process to make the tables again.
_PAUSE_SECONDS = 5.0


class PooledPostgresStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage`, named in `dagster.yaml` under `storage: custom:` and configured like it."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Return what may be configured: all that is for `DagsterPostgresStorage`, the URL from a file too."""
        theirs: Any = super().config_type()
        return {**theirs, "postgres_url": dg.Field(UrlSource(), is_required=False)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> "PooledPostgresStorage":
        """Make the storage from its part of `dagster.yaml`; its three parts share the connection that is kept."""
        given, provider = pg_url_from_config(config_value), get_token_provider_from_config(config_value)
        makes_tables = config_value.get("should_autocreate_tables", True)
        url, engine = _engines.get(given) or _engines.setdefault(given, _opened(given, provider, makes_tables))
        storage = cls(url, makes_tables, inst_data, provider)
        parts: tuple[Any, ...] = (storage._run_storage, storage._event_log_storage, storage._schedule_storage)
        for part in parts:
            # dagster-postgres has no setting for it, and no other way in.
            part._engine = engine
            part.optimize_for_webserver = partial(_limit_statements, part)
        return storage


class _Tables:
    """Makes Dagster's tables again when an engine of this process misses one."""

    def __init__(self, url: str, provider: Any) -> None:
        self._url = url
        self._provider = provider
        self._lock = threading.Lock()
        self._tried_at = -_PAUSE_SECONDS

    def watch(self, engine: Engine) -> None:
        """Look at each error of this engine."""
        event.listen(engine, "handle_error", self._look)

    def _look(self, context: ExceptionContext) -> None:
        if not is_missing_table(context.original_exception) or not self._lock.acquire(blocking=False):
            return
        try:
            if time.monotonic() - self._tried_at >= _PAUSE_SECONDS:
                self._make()
                self._tried_at = time.monotonic()
        finally:
            self._lock.release()

    def _make(self) -> None:
        try:
            before = self._names()
            # It looks which of its parts lacks its tables, and begins again where another process makes them too. Of a
            # part that lacks some of them it makes none: the doctor names those.
            DagsterPostgresStorage(self._url, True, None, self._provider)
            is_made = before != self._names()
        except Exception as error:  # noqa: BLE001 - what is told is the error of the statement that missed a table
            log().warning("dagster_tables_not_made", error=type(error).__name__)
            return
        if is_made:
            log().warning("dagster_tables_made")

    def _names(self) -> set[str]:
        return set(inspect(create_pg_engine(self._url, self._provider, poolclass=NullPool)).get_table_names())


def _opened(url: str, provider: Any, makes_tables: bool) -> tuple[str, Engine]:
    usable = storage_url(url)
    engine = _pooled(usable, provider)
    try:
        # It stays for the first statement.
        engine.connect().close()
    except DBAPIError as error:
        # A server that is away is Dagster's own matter: it tries again.
        if refuses_options(error):
            usable = storage_url(url, options=False)
            engine = _pooled(usable, provider)
    if makes_tables:
        _Tables(usable, provider).watch(engine)
    return usable, engine


def _pooled(url: str, provider: Any) -> Engine:
    pooled = {"isolation_level": "AUTOCOMMIT", "pool_size": 1, "max_overflow": -1, "pool_pre_ping": True}
    return create_pg_engine(url, provider, **pooled)


def _limit_statements(part: Any, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
    """Give a part of the webserver's storage an engine whose statements end after *statement_timeout* milliseconds.

    dagster-postgres would SET that. Behind a pooler, which refuses options, the role's limit counts.
    """
    url = make_url(part.postgres_url)
    if options := url.query.get("options"):
        url = url.update_query_dict({"options": f"{options} -c statement_timeout={statement_timeout}"})
    pooled = {"isolation_level": "AUTOCOMMIT", "pool_size": 1, "pool_pre_ping": True}
    part._engine = create_pg_engine(
        url.render_as_string(hide_password=False),
        part._token_provider,
        pool_recycle=pool_recycle,
        max_overflow=max_overflow,
        **pooled,
    )
