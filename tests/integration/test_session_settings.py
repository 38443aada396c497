"""Nothing that a role, a database or the environment says about a session changes what ours deliver and prove."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, make_url, text

from outbox_pipeline.clickhouse.client import open_client
from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.monitoring.status import read_status
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once
from tests.fixtures.servers import Servers
from tests.fixtures.stores import OWN_IDENTITY, fresh_clickhouse, fresh_database, url_of

ROLE, DATABASE = "ALTER ROLE {role} IN DATABASE {database}", "ALTER DATABASE {database}"

#: What differs in another encoding, form of a time or of a number, where backslashes escape, or when cut short.
PUBLISH = text(
    "INSERT INTO outbox.event"
    " (event_type, environment, event_context, event_date_time, metadata_version, trace_context)"
    " SELECT 'größe/大', 'Ã', CAST(context AS json), CAST(at AS timestamptz), 9007199254740993, 'Ÿ\\n' FROM (VALUES"
    """ ('{"é": "Ã©", "price": "€ 5"}', '2026-03-04 05:06:07.123456+00'),"""
    """ ('{"名": "日本語 𝄞", "n": 0.1000000000000000055}', '2026-10-25 02:30:00.000001+01'),"""
    """ ('{ "path" : "a\\\\b", "n":[null, 1e-7, 12345678901234567890] }', '2026-10-25 02:30:00.000001+02'),"""
    """ ('{"day": "12/11/2026"}', '1999-12-31 23:59:59.999999-08')) AS event (context, at)"""
)
COLUMNS = (
    "event_id, event_type, environment, event_context, event_date_time, metadata_version, recorded_at, trace_context"
)

#: By what they touch; those of a step reach a session together, and none hides what another would do.
SETTINGS: dict[str, dict[str, str]] = {
    "LATIN1": {"client_encoding": "LATIN1", "DateStyle": "German", "IntervalStyle": "sql_standard"},
    "SQL_ASCII": {"client_encoding": "SQL_ASCII", "DateStyle": "SQL, DMY", "IntervalStyle": "iso_8601"},
    "EUC_JP": {"client_encoding": "EUC_JP", "DateStyle": "Postgres, YMD", "TimeZone": "<+15>-15"},
    "numbers": {"extra_float_digits": "-15", "lc_numeric": "C", "bytea_output": "escape", "xmlbinary": "hex"},
    "zones": {"TimeZone": "America/Los_Angeles", "timezone_abbreviations": "India", "extra_float_digits": "3"},
    "texts": {"array_nulls": "off", "transform_null_equals": "on", "standard_conforming_strings": "off"},
    "names": {"quote_all_identifiers": "on", "search_path": "''", "lc_messages": "C"},
    "shadows": {"search_path": "shadow, pg_catalog", "check_function_bodies": "off"},
    "types": {"search_path": "shadow_types, pg_catalog"},
    "rights": {"role": "outbox_pipeline", "search_path": "nowhere", "session_replication_role": "replica"},
    "snapshots": {"default_transaction_isolation": "'repeatable read'", "synchronous_commit": "off"},
    "read only": {
        "default_transaction_isolation": "serializable",
        "default_transaction_read_only": "on",
        "default_transaction_deferrable": "on",
    },
    "told": {"client_min_messages": "debug1", "exit_on_error": "on", "idle_session_timeout": "500ms"},
    # Slower at most.
    "plans": {"plan_cache_mode": "force_generic_plan", "enable_indexscan": "off", "enable_nestloop": "off"},
    "resources": {"work_mem": "64kB", "jit_above_cost": "0", "max_parallel_workers_per_gather": "4"},
}

#: Shorter than what the tests below wait for, and longer than a transaction takes to begin.
LIMITS = {f"{name}_timeout": "700ms" for name in ("statement", "lock", "transaction", "idle_in_transaction_session")}

ENVIRONMENTS = (
    {"PGCLIENTENCODING": "LATIN1"},
    {"PGCLIENTENCODING": "SQL_ASCII", "PGTZ": "Asia/Kolkata", "PGDATESTYLE": "German"},
    {"PGOPTIONS": "-c client_encoding=LATIN1 -c DateStyle=SQL,DMY -c quote_all_identifiers=on"},
    {"PGOPTIONS": "-c statement_timeout=2s -c default_transaction_read_only=on -c search_path=shadow,pg_catalog"},
)


@dataclass(frozen=True)
class Walk:
    """Both stores as an ordinary role delivers, and the owner who changes what sessions begin with."""

    stores: Stores
    owner: Engine
    names: dict[str, str]

    @contextmanager
    def beginning_with(self, whose: str, settings: dict[str, str]) -> Iterator[None]:
        """Let every session that begins inside the block begin with these, as far as the server knows them."""
        target = whose.format(**self.names)
        with self.owner.connect() as connection:
            known = set(connection.scalars(text("SELECT name FROM pg_settings")))
            for name, value in settings.items():
                if name in known:
                    written = value if value.startswith("'") or name == "search_path" else f"'{value}'"
                    connection.exec_driver_sql(f"{target} SET {name} = {written}")
            self.stores.engine.dispose()
            try:
                yield
            finally:
                connection.exec_driver_sql(f"{target} RESET ALL")

    def wait_until_waiting(self, table: str, *, seconds: float) -> None:
        """Wait until a session of the role has waited so long for a lock on the table."""
        statement = (
            "SELECT count(*) > 0 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted"
            " AND relation = CAST(:table AS regclass) AND clock_timestamp() - query_start > make_interval(secs => :age)"
        )
        self.wait_until(statement, table=f"outbox.{table}", age=seconds)

    def wait_until(self, statement: str, **parameters: object) -> None:
        """Wait until the owner is answered with true."""
        with self.owner.connect() as connection:
            assert wait_until(lambda: connection.scalar(text(statement), parameters), seconds=60)

    def deliver_and_compare(self) -> None:
        """Publish, deliver, and find the same on both sides, by id and byte for byte."""
        with self.owner.connect() as connection:
            connection.execute(PUBLISH)

        relay(self.stores, until_empty=True)

        assert self._published() == self._delivered()
        assert_each_exactly_once(self.owner, self.stores.client)
        assert reconcile(self.stores, by_type=True).is_clean
        status = read_status(self.stores.engine)
        assert (status.pending, status.quarantined, status.last_error_kind) == (0, 0, None)

    def _published(self) -> list[tuple[object, ...]]:
        with self.owner.connect() as connection:
            found = connection.execute(
                text(f"SELECT {COLUMNS.replace('event_context', 'event_context::text')} FROM outbox.event ORDER BY 1")
            )
            return sorted((tuple(row) for row in found), key=str)

    def _delivered(self) -> list[tuple[object, ...]]:
        found = self.stores.client.rows(f"SELECT {COLUMNS} FROM {{table:Identifier}}")
        return sorted((tuple(row.values()) for row in found), key=str)

    def _run(self, statement: str) -> None:
        with self.owner.connect() as connection:
            connection.exec_driver_sql(statement)


@pytest.fixture(scope="module")
def walk(servers: Servers, migrated_template: str) -> Iterator[Walk]:
    """One database on each side for the whole walk, and a login role that may deliver and no more."""
    role = f"walker_{uuid4().hex[:12]}"
    with fresh_database(servers, template=migrated_template) as database, fresh_clickhouse(servers) as clickhouse_url:
        url = make_url(url_of(servers, database))
        owner = create_engine(url, isolation_level="AUTOCOMMIT", connect_args={"client_encoding": "UTF8"})
        with owner.connect() as connection:
            connection.execute(OWN_IDENTITY)
            connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'; GRANT outbox_pipeline TO {role}")
            # What an operator or a function of ours would be taken for, were it found by its name alone.
            connection.exec_driver_sql(
                "CREATE SCHEMA shadow_types; GRANT USAGE ON SCHEMA shadow_types TO PUBLIC;"
                " CREATE DOMAIN shadow_types.text AS integer;"
                " CREATE SCHEMA shadow; GRANT USAGE ON SCHEMA shadow TO PUBLIC;"
                " CREATE TABLE shadow.pg_locks (virtualtransaction text);"
                " CREATE FUNCTION shadow.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT $2'"
            )
        settings = Settings(
            postgres_url=SecretStr(url.set(username=role, password=role).render_as_string(hide_password=False)),
            clickhouse_url=SecretStr(clickhouse_url),
            retry_base_seconds=0.1,
            lock_timeout_seconds=60,
        )
        client, engine = open_client(settings), create_outbox_engine(settings)
        create_table(client)
        yield Walk(Stores(engine, client, settings), owner, {"role": role, "database": database})
        client.close()
        engine.dispose()
        with owner.connect() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")
        owner.dispose()


@pytest.mark.parametrize("step", SETTINGS)
def test_what_a_role_or_a_database_sets_reaches_no_session_of_ours(walk: Walk, step: str) -> None:
    """Whatever sessions begin with, every event arrives as published, none is held, and both sides agree."""
    # By turns: a role's own goes before its database's, and both reach a session in the same way.
    whose = (ROLE, DATABASE)[list(SETTINGS).index(step) % 2]

    with walk.beginning_with(whose, SETTINGS[step]):
        walk.deliver_and_compare()


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_the_environment_reaches_no_session_of_ours(
    walk: Walk, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables that libpq reads change nothing either."""
    # The application's session is its own affair, so it begins before.
    with walk.owner.connect():
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        walk.stores.engine.dispose()

        walk.deliver_and_compare()

    walk.stores.engine.dispose()


def test_a_session_is_left_as_it_was(walk: Walk) -> None:
    """What a transaction of ours sets ends with it: whoever shares the session through a pooler sees nothing of it."""
    shown = text("SELECT pg_backend_pid(), json_object_agg(name, setting) FROM pg_settings")
    with walk.stores.engine.connect() as connection:
        before = connection.execute(shown).one()

    with ledger_transaction(walk.stores.engine) as connection:
        assert connection.execute(shown).one()[1] != before[1]

    with walk.stores.engine.connect() as connection:
        assert connection.execute(shown).one() == before


def test_a_long_wait_of_ours_ends_by_no_limit_of_its_role(walk: Walk) -> None:
    """A cut and a bulk read wait for locks longer than the role's sessions may, and then go on."""
    with walk.beginning_with(ROLE, LIMITS), walk.owner.connect() as other, ThreadPoolExecutor() as pool:
        other.execute(PUBLISH)
        other.exec_driver_sql("BEGIN; LOCK outbox.unclaimed")
        cutting = pool.submit(cut_batches, walk.stores.engine, walk.stores.settings, limit=1)
        walk.wait_until_waiting("unclaimed", seconds=1)
        other.exec_driver_sql("COMMIT")
        batch = cutting.result().batches[0]

        other.exec_driver_sql("BEGIN; LOCK outbox.event")
        reading = pool.submit(extract_events, walk.stores.engine, batch.batch_id)
        walk.wait_until_waiting("event", seconds=1)
        other.exec_driver_sql("COMMIT")

        assert reading.result().num_rows == batch.event_count == 4
    walk.deliver_and_compare()


def test_a_pause_of_ours_ends_by_no_limit_of_its_role(walk: Walk) -> None:
    """A transaction that pauses longer than its role's sessions may is still there."""
    with walk.beginning_with(ROLE, LIMITS), ledger_transaction(walk.stores.engine) as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        walk.wait_until(
            "SELECT clock_timestamp() - state_change > '1 s' FROM pg_stat_activity WHERE pid = :pid", pid=pid
        )

        assert connection.scalar(text("SELECT pg_backend_pid()")) == pid
