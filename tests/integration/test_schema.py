"""Migrations: repeatable, safe side by side, and in step with the tables the code names."""

import threading
from uuid import uuid4

import pytest
from sqlalchemy import Engine, MetaData, text

from outbox_pipeline.errors import ConfigurationError, TransientError
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.migrations.files import LOCK_KEY
from outbox_pipeline.postgres.schema import check_version, latest_version, migrate, schema_version
from outbox_pipeline.postgres.tables import SCHEMA, metadata
from outbox_pipeline.processes import wait_until
from outbox_pipeline.stores import Stores
from tests.fixtures.commands import Outbox
from tests.fixtures.ledger import execute


def test_migrating_again_changes_nothing(outbox_engine: Engine) -> None:
    """A migrated database stays as it is."""
    assert migrate(outbox_engine) == latest_version()
    with outbox_engine.connect() as connection:
        assert schema_version(connection) == latest_version()


def test_two_migrations_at_once_both_succeed(outbox_engine: Engine) -> None:
    """Several processes may start on an empty database together."""
    with outbox_engine.begin() as connection:
        connection.execute(text("DROP SCHEMA outbox CASCADE"))
    versions: list[str] = []
    threads = [threading.Thread(target=lambda: versions.append(migrate(outbox_engine))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert versions == [latest_version()] * 4


def test_a_migration_that_met_a_deadlock_begins_anew(outbox_engine: Engine) -> None:
    """PostgreSQL ends one of two that wait for each other, here the migration, with nothing done."""
    with outbox_engine.begin() as connection:
        connection.execute(text("DROP SCHEMA outbox CASCADE"))
        # Who waits longer than that looks for a deadlock, once: the migration, but not before the other one waits too.
        connection.execute(text(f"ALTER DATABASE \"{outbox_engine.url.database}\" SET deadlock_timeout = '3s'"))
    outbox_engine.dispose()
    versions: list[str] = []
    migration = threading.Thread(target=lambda: versions.append(migrate(outbox_engine)))
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'")

    with outbox_engine.connect() as other, outbox_engine.connect() as looking:
        other.execute(text("SET LOCAL deadlock_timeout = '60s'"))
        other.execute(text("CREATE SCHEMA outbox"))
        migration.start()
        assert wait_until(lambda: bool(looking.scalar(waiting)), seconds=2.5)
        other.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        assert versions == []
        other.rollback()
        migration.join()

    assert versions == [latest_version()]


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("DROP SCHEMA outbox CASCADE", "no outbox schema yet: run 'outbox init'"),
        ("UPDATE outbox.schema_version SET version_num = '9999'", "newer than this code"),
        ("UPDATE outbox.schema_version SET version_num = '0006'", "has version 0006, this code needs .* 'outbox init'"),
    ],
)
def test_another_version_is_named(outbox_engine: Engine, statement: str, sentence: str) -> None:
    """A schema that does not fit the code is one sentence, not a failing query later."""
    with outbox_engine.begin() as connection:
        connection.execute(text(statement))

    with pytest.raises(ConfigurationError, match=sentence), ledger_transaction(outbox_engine) as connection:
        check_version(connection)


def test_a_newer_database_is_not_migrated(outbox_engine: Engine) -> None:
    """An old installation leaves a newer database alone and says so."""
    with outbox_engine.begin() as connection:
        connection.execute(text("UPDATE outbox.schema_version SET version_num = '9999'"))

    with pytest.raises(ConfigurationError, match="update outbox-pipeline"):
        migrate(outbox_engine)


# SQLAlchemy has no word for what it reads of a constraint that is NOT VALID.
@pytest.mark.filterwarnings("ignore:Can't validate argument 'dialect_options'")
def test_the_tables_in_python_are_the_tables_in_the_database(outbox_engine: Engine) -> None:
    """Every table and column the code names exists with its type and nullability, and no other."""
    found = MetaData(schema=SCHEMA)
    found.reflect(outbox_engine)
    tables = {name: table for name, table in found.tables.items() if not name.endswith(".schema_version")}

    def shape(table_set: dict[str, object]) -> dict[str, object]:
        return {
            name: {
                column.name: (column.type.compile(outbox_engine.dialect), column.nullable)
                for column in table.columns  # type: ignore[attr-defined]
            }
            for name, table in table_set.items()
        }

    assert shape(dict(tables)) == shape(dict(metadata.tables))


def test_a_held_lock_is_named_and_not_waited_for(outbox_engine: Engine) -> None:
    """Any account can take the lock of migrations; `outbox init` then says which session has it, and ends."""
    with outbox_engine.connect() as other:
        other.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
        pid = other.scalar(text("SELECT pg_backend_pid()"))
        other.commit()

        with pytest.raises(TransientError) as refused:
            migrate(outbox_engine, lock_seconds=0.1)

        other.execute(text("SELECT pg_advisory_unlock_all()"))
    assert f"held by pid {pid} (user postgres, application outbox-pipeline)" in str(refused.value)
    assert "pg_terminate_backend" in str(refused.value)
    assert migrate(outbox_engine, lock_seconds=0.1) == latest_version()


def test_a_locked_table_is_not_waited_for(outbox_engine: Engine) -> None:
    """A migration behind whose lock every writer would wait gives up too."""
    with outbox_engine.begin() as other:
        other.execute(text("LOCK TABLE outbox.schema_version IN ACCESS EXCLUSIVE MODE"))

        with pytest.raises(TransientError, match="A table of schema outbox was locked"):
            migrate(outbox_engine, lock_seconds=0.1)


@pytest.mark.parametrize("arguments", [["status"], ["relay"], ["publish", "-"], ["resume"], ["trace", str(uuid4())]])
@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DROP SCHEMA outbox CASCADE", "run 'outbox init'"),
        ("UPDATE outbox.schema_version SET version_num = '9999'", "update outbox-pipeline"),
    ],
)
def test_schema_that_does_not_fit_is_one_sentence(
    outbox: Outbox, stores: Stores, arguments: list[str], statement: str, said: str
) -> None:
    """On a real server a missing schema is not created by the way, and a newer one is left alone."""
    execute(stores.engine, statement)

    result = outbox(*arguments, given="")

    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
