"""Migrations of the log: repeatable, safe side by side and when killed, and a log of another version is refused."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from outbox_pipeline.clickhouse.client import EventLogClient, clickhouse_client
from outbox_pipeline.clickhouse.migrations import files
from outbox_pipeline.clickhouse.schema import latest_version, migrate_log, read_log
from outbox_pipeline.clickhouse.table import check_table, create_table, table_problem
from outbox_pipeline.embedded.clickhouse import start_clickhouse, stop_clickhouse
from outbox_pipeline.embedded.engines import embedded_engines
from outbox_pipeline.embedded.homes import Home, locked
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, delivered_ids, publish
from tests.fixtures.migrating import StartMigrating
from tests.fixtures.proxy import Fault, FaultyProxy, through
from tests.fixtures.snapshots import delivered_batches

_SHAPE = """
SELECT replaceAll(name, {table:String}, 'log') AS part, engine,
       replaceAll(create_table_query, {table:String}, 'log') AS statement
FROM system.tables WHERE database = currentDatabase() AND startsWith(name, {table:String}) ORDER BY part
"""
_RECORD = "CREATE TABLE IF NOT EXISTS {table}_migrations"
_NOTE = "INSERT INTO {migrations:"


def shape(client: EventLogClient) -> list[dict[str, Any]]:
    """Return what ClickHouse says of each table of a log, whatever the log is called."""
    return client.rows(_SHAPE)


def on_record(client: EventLogClient) -> list[str]:
    """Return the migrations on record, in order."""
    return sorted(read_log(client).applied)


@contextmanager
def named(settings: Settings, table: str) -> Iterator[tuple[Settings, EventLogClient]]:
    """Give the settings of a log of another name, and a client on it."""
    here = settings.model_copy(update={"clickhouse_table": table})
    with clickhouse_client(here) as client:
        yield here, client


@pytest.fixture
def next_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """This code with one more migration of two statements; its number is returned."""
    for file in files.FOLDER.glob("*.sql"):
        shutil.copy(file, tmp_path)
    (tmp_path / "9998_more.sql").write_text(
        "-- Of the next release.\n"
        "ALTER TABLE {table:Identifier}\n    ADD COLUMN IF NOT EXISTS more UInt8 COMMENT 'More';\n\n"
        "ALTER TABLE {fence:Identifier}\n    ADD COLUMN IF NOT EXISTS more UInt8 COMMENT 'More';\n"
    )
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    return "9998"


def test_migrating_again_sends_nothing(stores: Stores, proxy: FaultyProxy) -> None:
    """A log with everything in it is only read, which takes no right to create or to write."""
    with clickhouse_client(through(proxy, stores.settings)) as client:
        assert create_table(client) == latest_version()

    assert [proxy.count(word) for word in ("CREATE", "ALTER", "INSERT")] == [0, 0, 0]


def test_two_processes_at_once_end_in_the_same_tables(
    stores: Stores, proxy: FaultyProxy, start_migrating: StartMigrating
) -> None:
    """Both find nothing, then both make everything."""
    with named(through(proxy, stores.settings), "both") as (settings, client):
        first, second = (proxy.inject(Fault.HOLD_REQUEST, _RECORD.format(table="both"), nth=nth) for nth in (1, 2))
        processes = [start_migrating(settings) for _ in range(2)]
        first.wait_reached()
        second.wait_reached()
        assert shape(client) == []
        first.released.set()
        second.released.set()
        for process in processes:
            process.join()

        assert [process.exitcode for process in processes] == [0, 0]
        assert len(shape(client)) == len(client.names)
        assert shape(client) == shape(stores.client)
        assert on_record(client) == on_record(stores.client)
        assert table_problem(client) is None


def test_a_migration_that_was_killed_is_gone_on_with(
    stores: Stores, proxy: FaultyProxy, start_migrating: StartMigrating
) -> None:
    """Killed after any of its statements it is called begun, and the next one ends in the same tables."""
    with named(stores.settings, "whole") as (_, client):
        create_table(client)
        wanted = shape(client)
    # The first makes the record of the others.
    words = ["CREATE", *(statement.text.split()[0] for each in files.migrations() for statement in each.statements)]
    begun = [any(one.keeps for one in each.statements[:n]) for each in files.migrations() for n in _counts(each)]

    for done, word in enumerate(words, start=1):
        so_far = words[:done]
        with named(through(proxy, stores.settings), f"killed{done}") as (settings, client):
            held = proxy.inject(Fault.HOLD_ANSWER, word, nth=so_far.count(word))
            process = start_migrating(settings)
            held.wait_reached()
            process.kill()
            process.join()
            held.released.set()
            assert len(shape(client)) == so_far.count("CREATE")
            said = str(table_problem(client))
            assert ("is not on record as done" in said) == [False, *begun][done - 1]
            assert "run 'outbox init'" in said

            assert create_table(client) == latest_version()

            assert shape(client) == wanted
            assert table_problem(client) is None


def _counts(migration: files.Migration) -> range:
    return range(1, len(migration.statements) + 1)


def test_a_record_that_was_emptied_is_written_again(stores: Stores) -> None:
    """The sentence is true of it too, and what it names puts the log on record as it is."""
    delivered_batches(stores, (3,))
    before = shape(stores.client)
    stores.client.run("TRUNCATE TABLE {migrations:Identifier}")

    said = str(table_problem(stores.client))
    create_table(stores.client)

    assert "0001_log of table event_log is not on record as done: run 'outbox init'" in said
    assert (shape(stores.client), table_problem(stores.client)) == (before, None)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_log_of_before_is_put_on_record(stores: Stores, proxy: FaultyProxy) -> None:
    """Its tables are what the first migration makes: they are used as they are, and only the record is made."""
    delivered_batches(stores, (3,))
    for name in _made_later():
        stores.client.run(f"DROP TABLE {name}")
    stores.client.run("DROP TABLE {migrations:Identifier}")
    before = shape(stores.client)
    assert read_log(stores.client).version == files.migrations()[0].version

    with clickhouse_client(through(proxy, stores.settings)) as client:
        create_table(client)

    assert proxy.count("CREATE") == 1 + len(_made_later())
    assert [table for table in shape(stores.client) if table in before] == before
    assert on_record(stores.client) == [migration.version for migration in files.migrations()]
    publish(stores.engine, 1)
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def _made_later() -> list[str]:
    later = [statement for migration in files.migrations()[1:] for statement in migration.statements]
    return [f"{{{statement.role}:Identifier}}" for statement in later if statement.is_create]


def test_a_newer_log_is_refused_and_left_alone(stores: Stores) -> None:
    """An old installation says so before it cuts or sends anything."""
    stores.client.run(f"{_NOTE}Identifier}} (version, name) VALUES ('9999', 'later')")
    before = shape(stores.client)
    publish(stores.engine, 2)

    for refused in (migrate_log, check_table, lambda _: relay(stores)):
        with pytest.raises(ConfigurationError, match=r"version 9999, newer than this code .*: update outbox-pipeline"):
            refused(stores.client)

    (found,) = [check for check in examine(stores.settings) if check.name == "clickhouse table"]
    assert (found.ok, "newer than this code" in found.message) == (False, True)
    assert shape(stores.client) == before
    assert batch_count(stores) == 0


def test_a_log_that_is_behind_is_refused_before_anything_is_cut(stores: Stores, next_release: str) -> None:
    """The sentence leads to `outbox init`, which brings it up to date; what waited is then delivered once."""
    publish(stores.engine, 2)

    said = f"this code needs {next_release}: run 'outbox init' to migrate it"
    with pytest.raises(ConfigurationError, match=said):
        relay(stores)
    (found,) = [check for check in examine(stores.settings) if check.name == "clickhouse table"]
    assert (found.ok, said in found.message) == (False, True)
    assert batch_count(stores) == 0
    assert delivered_ids(stores.client) == []

    assert create_table(stores.client) == next_release

    assert stores.client.rows("SELECT more FROM {table:Identifier}") == []
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def batch_count(stores: Stores) -> int:
    """Return how many batches were cut."""
    with stores.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM outbox.batch").scalar_one())


def test_what_is_missing_of_a_whole_log_is_made_again_with_what_came_later(stores: Stores, next_release: str) -> None:
    """A table that is made again gets what later migrations have changed in it."""
    create_table(stores.client)
    wanted = shape(stores.client)
    stores.client.run("DROP TABLE {table:Identifier}")

    assert create_table(stores.client) == next_release

    assert shape(stores.client) == wanted


#: What a delivery needs in ClickHouse by docs/deploying.md, where ClickHouse refuses no event.
_DELIVERER = "GRANT SHOW, SELECT, INSERT, ALTER DELETE ON *.*"


@pytest.fixture
def narrow_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An engine whose user may do what a delivery needs and no more, with a log made by one that may do more."""
    home = Home(tmp_path / "home")
    with embedded_engines(home.path, postgres=False) as urls:
        assert urls.clickhouse is not None
        with clickhouse_client(Settings(clickhouse_url=SecretStr(urls.clickhouse))) as client:
            create_table(client)
        (tmp_path / "sitecustomize.py").write_text(
            "from outbox_pipeline.embedded import rights\n"
            f"rights._GRANTS = ({_DELIVERER!r}, 'REVOKE INSERT, ALTER ON _outbox.*', 'REVOKE ALL ON _start.*')\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with locked(home):
            stop_clickhouse(home)
            yield start_clickhouse(home).url


@pytest.mark.embedded_only
def test_a_whole_log_takes_no_right_to_create(stores: Stores, narrow_url: str) -> None:
    """A user who may create nothing repeats `outbox init` and delivers; what is missing is one sentence."""
    settings = stores.settings.model_copy(update={"clickhouse_url": SecretStr(narrow_url)})
    publish(stores.engine, 3)

    with clickhouse_client(settings) as client:
        assert create_table(client) == latest_version()
        relay(Stores(stores.engine, client, settings), until_empty=True)
        assert_each_exactly_once(stores.engine, client)
    with (
        named(settings, "other") as (_, client),
        pytest.raises(ConfigurationError, match=r"CREATE TABLE ON .*other_migrations"),
    ):
        create_table(client)
