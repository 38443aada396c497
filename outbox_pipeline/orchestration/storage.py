"""Dagster's storage in PostgreSQL, with connections that are kept.

dagster-postgres opens a connection for every statement of a run, a tick and the daemon, and each is a new process in
PostgreSQL: some fifteen a second while nothing happens, a fifth of two cores while a backlog is delivered. Here each
process of Dagster keeps one, opens more only while it needs them at once, and looks before each use whether its
connection still lives.
"""

from typing import Any

from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import create_pg_engine, get_token_provider_from_config, pg_url_from_config
from sqlalchemy import Engine

#: By URL; instances come and go with every tick.
_engines: dict[str, Engine] = {}


class PooledPostgresStorage(DagsterPostgresStorage):
    """`DagsterPostgresStorage`, named in `dagster.yaml` under `storage: custom:` and configured like it."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> "PooledPostgresStorage":
        """Make the storage from its part of `dagster.yaml`; its three parts share the connection that is kept."""
        url, provider = pg_url_from_config(config_value), get_token_provider_from_config(config_value)
        storage = cls(url, config_value.get("should_autocreate_tables", True), inst_data, provider)
        if url not in _engines:
            pooled = {"isolation_level": "AUTOCOMMIT", "pool_size": 1, "max_overflow": -1, "pool_pre_ping": True}
            _engines[url] = create_pg_engine(url, provider, **pooled)
        for part in (storage._run_storage, storage._event_log_storage, storage._schedule_storage):
            # dagster-postgres has no setting for it, and no other way in.
            part._engine = _engines[url]
        return storage
