"""The doctor on real engines: what it finds wrong, and that it finds nothing in a good setup."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import pytest
from pydantic import SecretStr

from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.monitoring.clocks import ServerClock, check_clocks
from outbox_pipeline.monitoring.doctor import check_encoding, check_postgres_version, check_variables, examine
from outbox_pipeline.monitoring.doctor_clickhouse import check_clickhouse_version
from outbox_pipeline.monitoring.doctor_dagster import DAGSTER_CHECKS
from outbox_pipeline.monitoring.patience import in_time
from outbox_pipeline.stores import Stores
from tests.fixtures.checks import finding
from tests.fixtures.ledger import execute
from tests.fixtures.servers import Servers


def test_doctor_finds_nothing_wrong_with_a_good_setup(stores: Stores, servers: Servers) -> None:
    """On fresh databases every check passes; what Dagster has not begun yet is no finding."""
    settings = stores.settings.model_copy(update={"dagster_url": SecretStr(servers.dagster_url)})

    checks = examine(settings)
    assert [check for check in checks if check.ok is False] == []
    assert {check.name for check in checks if not check.ok} <= set(DAGSTER_CHECKS) - {"dagster storage"}


@pytest.mark.parametrize(
    ("statement", "name", "said"),
    [
        ("DROP SCHEMA outbox CASCADE", "schema", "run 'outbox init'"),
        ("UPDATE outbox.schema_version SET version_num = '9999'", "schema", "newer than this code"),
        ("UPDATE outbox.unclaimed SET timeline = timeline + 1", "ledger", "another cluster"),
        ("ALTER SEQUENCE outbox.event_position_seq CACHE 10", "ledger", "CACHE 1"),
        ("ALTER TABLE outbox.event SET (autovacuum_enabled = off)", "postgres vacuum", "outbox.event"),
        ("ALTER TABLE outbox.batch SET (autovacuum_enabled = false)", "postgres vacuum", "RESET (autovacuum_enabled)"),
    ],
)
def test_doctor_finds_what_is_wrong_in_postgres(stores: Stores, statement: str, name: str, said: str) -> None:
    """A schema that is missing or newer and a ledger that must not go on are found."""
    execute(stores.engine, statement)

    check = finding(stores.settings, name)

    assert check.ok is False
    assert said in check.message


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (["DROP TABLE {table:Identifier}"], "has no table event_log: run 'outbox init'"),
        (["ALTER TABLE {table:Identifier} DROP COLUMN trace_context"], "lacks column trace_context"),
        (["ALTER TABLE {table:Identifier} MODIFY COLUMN generation UInt64"], "generation as UInt64"),
        (
            ["ALTER TABLE {table:Identifier} RESET SETTING non_replicated_deduplication_window"],
            "no deduplication window",
        ),
        (["DROP TABLE {table:Identifier}", "CREATE TABLE {table:Identifier} (a Int8) ENGINE = Log"], "engine Log"),
    ],
)
def test_doctor_finds_what_is_wrong_in_clickhouse(stores: Stores, statements: list[str], said: str) -> None:
    """A table that is missing, has other columns, another engine or no window is found."""
    for statement in statements:
        stores.client.run(statement)

    check = finding(stores.settings, "clickhouse table")

    assert check.ok is False
    assert said in check.message


def test_doctor_finds_a_missing_database(stores: Stores) -> None:
    """A database that does not exist is named, and what depends on it is skipped."""
    assert stores.settings.postgres_url
    url = stores.settings.postgres_url.get_secret_value()
    database = stores.engine.url.database or ""
    checks = examine(stores.settings.model_copy(update={"postgres_url": SecretStr(url.replace(database, "nowhere"))}))
    found = {check.name: check for check in checks}

    assert found["postgres"].ok is False
    assert "nowhere" in found["postgres"].message
    assert found["schema"].ok is found["ledger"].ok is None
    assert found["clickhouse table"].ok is True


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A port that takes connections and never answers, as a stopped server does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_server_that_never_answers_is_one_finding(stores: Stores, mute_port: int) -> None:
    """Whichever hangs, within seconds it is named with what to do, and the other ones are checked."""
    assert stores.settings.postgres_url
    mute = {
        "postgres_url": f"postgresql+psycopg://u@127.0.0.1:{mute_port}/db",
        "dagster_url": f"postgresql+psycopg2://u@127.0.0.1:{mute_port}/db",
        "clickhouse_url": f"http://127.0.0.1:{mute_port}",
    }
    # Each waits for seconds, so they wait side by side.
    with ThreadPoolExecutor(len(mute)) as doctors:
        no_postgres, no_dagster, no_clickhouse = doctors.map(
            lambda url: examine(stores.settings.model_copy(update={url: SecretStr(mute[url])})), mute
        )

    assert [check.name for check in no_postgres if check.ok is False] == ["postgres"]
    assert {check.name: check.ok for check in no_postgres}["clickhouse table"] is True
    assert [check.name for check in no_dagster if check.ok is False] == ["dagster storage"]
    assert {check.name: check.ok for check in no_dagster}["ledger"] is True
    (wrong,) = [check for check in no_clickhouse if check.ok is False]
    assert wrong.name == "clickhouse"
    assert "has not answered it in time: look whether it hangs" in wrong.message
    assert {check.name: check.ok for check in no_clickhouse}["ledger"] is True


def test_a_check_that_hangs_is_given_up() -> None:
    """Each check has its time; the one that takes longer is a finding, and those that need its server are skipped."""
    never = threading.Event()

    def hanging() -> Iterator[Check]:
        yield Check("two", True, "fine")
        never.wait()

    found = list(in_time(hanging(), ("one", "two", "three", "four"), seconds=0.2))
    never.set()

    assert [(check.name, check.ok) for check in found] == [("two", True), ("three", False), ("four", None)]
    assert "No answer within" in found[1].message


def test_doctor_finds_a_misspelt_setting() -> None:
    """A variable one letter away from a setting is named with it; one of another program is only listed."""
    wrong = check_variables({"OUTBOX_LEASE_SECOND": "5", "PATH": ""})
    other = check_variables({"OUTBOX_LEASE_SECONDS": "5", "OUTBOX_XYZ": ""})

    assert (wrong.ok, other.ok) == (False, True)
    assert "OUTBOX_LEASE_SECOND is no setting: OUTBOX_LEASE_SECONDS is" in wrong.message
    assert "OUTBOX_XYZ" in other.message


def test_doctor_finds_a_start_in_the_future(stores: Stores) -> None:
    """Before the first partition no event has a day Dagster knows."""
    check = finding(stores.settings.model_copy(update={"start_date": date(2999, 1, 1)}), "start date")

    assert check.ok is False
    assert "OUTBOX_START_DATE" in check.message


def test_doctor_finds_clocks_that_differ() -> None:
    """The two clocks furthest apart are named; a slow answer alone is no finding."""
    ahead = ServerClock("PostgreSQL", timedelta(seconds=4), timedelta())
    behind = ServerClock("ClickHouse", timedelta(seconds=-3), timedelta())
    slow = ServerClock("ClickHouse", timedelta(seconds=6), timedelta(seconds=5))

    assert "PostgreSQL and ClickHouse are 7.0 s apart" in check_clocks([ahead, behind]).message
    assert check_clocks([ahead, behind]).ok is False
    assert check_clocks([ahead]).ok is True
    assert check_clocks([slow]).ok is True
    assert check_clocks([]).ok is None


@pytest.mark.parametrize(
    "check",
    [
        check_postgres_version(140012, "postgresql://h"),
        check_clickhouse_version("25.7.1.2", "http://h"),
        check_clickhouse_version("24.12.1.2", "http://h"),
    ],
)
def test_doctor_finds_servers_that_are_too_old(check: Check) -> None:
    """PostgreSQL before 15 and ClickHouse before 25.8 are findings."""
    assert check.ok is False


def test_doctor_warns_of_another_encoding() -> None:
    """Text of a database that is not UTF-8 arrives, but not every character can be published there."""
    check = check_encoding("LATIN1")

    assert (check.ok, check.is_warning) == (True, True)
    assert "LATIN1 lacks" in check.message


def test_doctor_finds_a_table_that_forgets_in_a_power_failure(stores: Stores) -> None:
    """A table that answers before its rows are on disk is named with the statement that changes it."""
    stores.client.run("ALTER TABLE {table:Identifier} MODIFY SETTING fsync_after_insert = 0")

    checks = {check.name: check for check in examine(stores.settings)}

    assert checks["postgres durability"].ok
    assert checks["clickhouse durability"].ok is False
    assert "MODIFY SETTING fsync_after_insert = 1" in checks["clickhouse durability"].message
