"""Dagster's storage keeps its connection, survives the loss of it, and leaves nothing in a pooler's sessions."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.errors import DagsterInvalidConfigError
from dagster._core.scheduler.instigation import TickData, TickStatus
from dagster._core.storage.dagster_run import DagsterRun
from pydantic import SecretStr
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError
from structlog.testing import capture_logs

from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.monitoring.doctor_dagster import check_storage, examine_dagster
from outbox_pipeline.postgres.dagster_storage import read_dagster_state, read_storage_settings
from outbox_pipeline.processes import wait_until
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.events import publish
from tests.fixtures.pgbouncer import Pool, left_behind
from tests.fixtures.servers import Servers
from tests.fixtures.stores import fresh_database


def use_all_parts(instance: dg.DagsterInstance) -> None:
    """Ask each of the three parts of the storage something, twice."""
    for _ in range(2):
        instance.get_runs_count()
        instance.all_instigator_state()
        instance.fetch_run_status_changes(dg.DagsterEventType.RUN_SUCCESS, limit=1)


@pytest.fixture
def sessions(dagster_url: str) -> Iterator[Callable[[str], set[int]]]:
    """Return a function that shows something of Dagster's sessions, their pid by default."""
    engine = create_engine(dagster_url)

    def show(what: str = "pid") -> set[int]:
        statement = text(
            f"SELECT {what} FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with engine.begin() as connection:
            return set(connection.execute(statement).scalars())

    yield show
    engine.dispose()


def test_an_instance_keeps_one_connection(instance: dg.DagsterInstance, sessions: Callable[..., set[int]]) -> None:
    """The packaged dagster.yaml asks for it: statements one after another need no second process of PostgreSQL."""
    use_all_parts(instance)
    assert wait_until(lambda: len(sessions()) == 1, seconds=10), sessions()
    before = sessions()

    use_all_parts(instance)

    assert sessions() == before


def test_a_lost_connection_is_replaced(instance: dg.DagsterInstance, sessions: Callable[..., set[int]]) -> None:
    """After a restart of PostgreSQL nobody sees an error."""
    use_all_parts(instance)
    lost = sessions()
    assert sessions("pg_terminate_backend(pid)") == {True}

    use_all_parts(instance)

    assert not lost & sessions()


@pytest.fixture
def own_instance(
    servers: Servers, pipeline_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance on a database of its own, whose tables a test may drop."""
    with fresh_database(servers) as name:
        url = make_url(servers.dagster_url).set(database=name).render_as_string(hide_password=False)
        monkeypatch.setenv("OUTBOX_DAGSTER_URL", url)
        with dg.DagsterInstance.from_config(str(pipeline_environment)) as instance:
            yield instance
            instance.run_storage._engine.dispose()  # type: ignore[attr-defined]


def run_sql(url: str, *statements: str) -> None:
    """Run statements in Dagster's database, each by itself."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_the_url_may_lie_in_a_file(
    pipeline_environment: Path, dagster_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`env: OUTBOX_DAGSTER_URL` of dagster.yaml means the file of OUTBOX_DAGSTER_URL_FILE too."""
    (tmp_path / "url").write_text(f"{dagster_url}\n", encoding="utf-8")
    monkeypatch.delenv("OUTBOX_DAGSTER_URL")
    monkeypatch.setenv("OUTBOX_DAGSTER_URL_FILE", str(tmp_path / "url"))

    with dg.DagsterInstance.from_config(str(pipeline_environment)) as instance:
        use_all_parts(instance)
        # What a run elsewhere is handed of its instance, in the arguments of its process.
        assert dagster_url not in dg.serialize_value(instance.get_ref())


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (None, "OUTBOX_DAGSTER_URL is not set, and neither is OUTBOX_DAGSTER_URL_FILE"),
        ("nowhere", "OUTBOX_DAGSTER_URL_FILE names nowhere, which is no file, or not there"),
    ],
)
def test_a_url_that_is_missing_is_named(
    pipeline_environment: Path, monkeypatch: pytest.MonkeyPatch, file: str | None, said: str
) -> None:
    """Dagster's error has a sentence that says which variable, and which file."""
    monkeypatch.delenv("OUTBOX_DAGSTER_URL")
    if file is not None:
        monkeypatch.setenv("OUTBOX_DAGSTER_URL_FILE", file)

    with pytest.raises(DagsterInvalidConfigError, match=said):
        dg.DagsterInstance.from_config(str(pipeline_environment))


DROP_ALL = ("DROP SCHEMA public CASCADE", "CREATE SCHEMA public")


def test_tables_that_were_dropped_are_made_again(own_instance: dg.DagsterInstance) -> None:
    """The statement that misses one fails; the next ones of the same process work, with an empty history."""
    own_instance.add_run(DagsterRun(job_name="before"))
    run_sql(os.environ["OUTBOX_DAGSTER_URL"], *DROP_ALL)

    with capture_logs() as lines, pytest.raises(ProgrammingError, match="does not exist"):
        own_instance.all_instigator_state()
    use_all_parts(own_instance)

    assert own_instance.get_runs_count() == 0
    assert [line["event"] for line in lines] == ["dagster_tables_made"]
    assert speak.execute_in_process(instance=own_instance).success


def test_a_single_table_is_not_made_again(own_instance: dg.DagsterInstance) -> None:
    """Dagster makes all or none of a part's, so no line says that they are there again."""
    run_sql(os.environ["OUTBOX_DAGSTER_URL"], "DROP TABLE job_ticks")

    with capture_logs() as lines, pytest.raises(ProgrammingError, match="does not exist"):
        own_instance.get_ticks("any", "any")

    assert lines == []


def found_by_doctor(stores: Stores, url: str) -> Check:
    """Return what the doctor says of Dagster's storage."""
    settings = stores.settings.model_copy(update={"dagster_url": SecretStr(url)})
    return {check.name: check for check in examine_dagster(settings, {})}["dagster storage"]


def test_the_doctor_names_a_storage_without_tables(own_instance: dg.DagsterInstance, stores: Stores) -> None:
    """It is no finding while the ledger knows of no run; then it is one, with what to do, and doing that helps."""
    url = os.environ["OUTBOX_DAGSTER_URL"]
    run_sql(url, *DROP_ALL)
    assert found_by_doctor(stores, url).ok
    publish(stores.engine, 3)
    assert relay(stores, until_empty=True).delivered_count == 3
    assert found_by_doctor(stores, url).ok, "a relay needs no Dagster"
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.batch SET run_id = 'a run'"))

    found = found_by_doctor(stores, url)

    assert found.ok is False
    assert "has no tables, though Dagster's runs have delivered" in found.message
    with dg.DagsterInstance.from_config(os.environ["DAGSTER_HOME"]):
        assert found_by_doctor(stores, url).ok


def test_the_doctor_names_tables_that_are_missing(own_instance: dg.DagsterInstance, stores: Stores) -> None:
    """Dagster makes all or none of a part's, so nothing but a person brings single ones back."""
    url = os.environ["OUTBOX_DAGSTER_URL"]
    run_sql(url, "DROP TABLE daemon_heartbeats, job_ticks")

    found = found_by_doctor(stores, url)

    assert found.ok is False
    assert "lacks daemon_heartbeats, job_ticks of its tables" in found.message
    run_sql(url, *DROP_ALL)
    with dg.DagsterInstance.from_config(os.environ["DAGSTER_HOME"]):
        assert found_by_doctor(stores, url).ok


@contextmanager
def database_with(dagster_url: str, settings: dict[str, str]) -> Iterator[None]:
    """Let every session of the storage that begins inside the block begin with these."""
    name = make_url(dagster_url).database
    engine = create_engine(
        dagster_url, isolation_level="AUTOCOMMIT", connect_args={"options": "-c statement_timeout=0"}
    )
    end_all = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with engine.connect() as connection:
        for setting, value in settings.items():
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET {setting} = '{value}'")
        connection.exec_driver_sql(end_all)
        try:
            yield
        finally:
            connection.exec_driver_sql(f"ALTER DATABASE {name} RESET ALL")
            connection.exec_driver_sql(end_all)
    engine.dispose()


UNLIKE = (
    {"TimeZone": "Asia/Kolkata", "DateStyle": "German", "client_encoding": "SQL_ASCII"},
    {"TimeZone": "America/Los_Angeles", "DateStyle": "SQL, DMY", "client_encoding": "LATIN1"},
    {"default_transaction_read_only": "on", "default_transaction_isolation": "serializable"},
    {"extra_float_digits": "-12", "statement_timeout": "1ms", "lock_timeout": "1ms", "quote_all_identifiers": "on"},
)


@pytest.mark.parametrize("unlike", UNLIKE, ids=["zone", "style", "read only", "numbers"])
def test_runs_are_kept_whatever_the_database_sets(
    instance: dg.DagsterInstance, dagster_url: str, unlike: dict[str, str]
) -> None:
    """Texts, times and numbers of a run come back as they were written, and the doctor's ages are right."""
    with database_with(dagster_url, unlike):
        run = DagsterRun(job_name="größe_日本語", tags={"what": "Ã© €"})
        before = datetime.now(UTC)
        instance.add_run(run)
        started = before.timestamp() + 0.123456
        with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
            connection.execute(
                text("UPDATE runs SET start_time = :at WHERE run_id = :id"), {"at": started, "id": run.run_id}
            )

        record = instance.get_run_record_by_id(run.run_id)

        assert record is not None
        assert (record.dagster_run.job_name, record.dagster_run.tags) == (run.job_name, run.tags)
        assert abs(record.create_timestamp - before) < timedelta(minutes=5)
        assert record.start_time == started
        state = read_dagster_state(dagster_url)
        assert state is not None
        assert abs(state.queued_seconds) < 300
        assert read_storage_settings(dagster_url) == {}
    instance.delete_run(run.run_id)


def test_the_webserver_has_the_same_sessions(instance: dg.DagsterInstance, dagster_url: str) -> None:
    """Engines that Dagster makes for its webserver know them too, beside the limit it sets itself."""
    with database_with(dagster_url, UNLIKE[0]):
        instance.optimize_for_webserver(statement_timeout=5000, pool_recycle=60, max_overflow=1)

        with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
            shown = [
                connection.scalar(text(f"SHOW {name}")) for name in ("TimeZone", "client_encoding", "statement_timeout")
            ]

    assert shown == ["UTC", "UTF8", "5s"]


def test_what_a_session_shows_is_named(dagster_url: str) -> None:
    """Where nothing sets it otherwise, the doctor says which settings Dagster would suffer from."""
    own = make_url(dagster_url).update_query_dict({"options": "-c TimeZone=Asia/Kolkata -c statement_timeout=300ms"})

    unlike = read_storage_settings(own.render_as_string(hide_password=False))

    assert unlike == {"TimeZone": "Asia/Kolkata", "statement_timeout": "300ms"}
    check = check_storage(own, unlike)
    assert check.ok is False
    assert "begin with TimeZone = Asia/Kolkata, statement_timeout = 300ms" in check.message
    assert "RESET TimeZone; ALTER ROLE" in check.message


@dg.op
def say() -> None:
    """Do nothing."""


@dg.job
def speak() -> None:
    """Run one op."""
    say()


@pytest.fixture
def behind_a_pooler(
    pipeline_environment: Path, dagster_url: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[dg.DagsterInstance, str]]:
    """An instance with its storage behind a pooler of one server session, and the URL that leads there."""
    url = pool(dagster_url)
    monkeypatch.setenv("OUTBOX_DAGSTER_URL", url)
    with dg.DagsterInstance.from_config(str(pipeline_environment)) as instance:
        yield instance, url


def test_runs_events_and_ticks_pass_a_pooler(behind_a_pooler: tuple[dg.DagsterInstance, str]) -> None:
    """Transaction pooling holds what each part writes, and the next client finds its session unchanged."""
    instance, url = behind_a_pooler
    before = left_behind(url)

    run_id = speak.execute_in_process(instance=instance).run_id
    instance.create_tick(TickData("origin", "sensor", InstigatorType.SENSOR, TickStatus.STARTED, 1.0, selector_id="s"))

    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.is_success
    said = [record.event_log_entry.dagster_event_type for record in instance.get_records_for_run(run_id).records]
    assert said.count(dg.DagsterEventType.STEP_SUCCESS) == 1
    assert [tick.instigator_name for tick in instance.get_ticks("origin", "s")] == ["sensor"]
    assert left_behind(url) ^ before == set()


def limits(instance: dg.DagsterInstance) -> list[str]:
    """Return the statement timeout of each part of the webserver's storage."""
    instance.optimize_for_webserver(statement_timeout=12_345, pool_recycle=60, max_overflow=5)
    parts = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
    engines = [part._engine for part in parts]  # type: ignore[attr-defined]
    found = []
    for engine in engines:
        with engine.connect() as connection:
            found.append(connection.scalar(text("SHOW statement_timeout")))
        engine.dispose()
    return found


def test_statements_of_the_webserver_have_a_limit(instance: dg.DagsterInstance) -> None:
    """`--db-statement-timeout` of the webserver holds for each part of the storage."""
    assert limits(instance) == ["12345ms"] * 3


def test_the_webserver_leaves_no_limit_in_a_pooler(behind_a_pooler: tuple[dg.DagsterInstance, str]) -> None:
    """A pooler refuses the limit, and what would be SET instead would stop the next client's statements."""
    instance, url = behind_a_pooler
    before = left_behind(url)

    assert limits(instance) == ["0"] * 3
    assert left_behind(url) ^ before == set()


def test_what_a_pooler_keeps_from_being_set_is_named(dagster_url: str, pool: Pool) -> None:
    """Sessions that begin in another zone, and cannot be told otherwise, are a finding of the doctor."""
    with database_with(dagster_url, {"TimeZone": "Asia/Kolkata"}):
        assert read_storage_settings(pool(dagster_url)) == {"TimeZone": "Asia/Kolkata"}
        assert read_storage_settings(dagster_url) == {}
