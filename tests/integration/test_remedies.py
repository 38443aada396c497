"""What the doctor says to do is done, word for word and as the role it names, and the complaint is gone.

Not here, because it is no database's own or takes a restart: servers that are too old or do not answer, fsync and the
server's autovacuum, clocks, Dagster's processes (`acceptance/stack/test_dagster_doctor.py`), a table of another engine.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, make_url

from outbox_pipeline.clickhouse.completeness import delivered_problem
from outbox_pipeline.clickhouse.table import create_table, durability_problem, table_problem
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.monitoring.check import Check
from outbox_pipeline.monitoring.doctor import check_start_date, check_variables, examine, grants_problem
from outbox_pipeline.monitoring.doctor_dagster import check_home, examine_dagster
from outbox_pipeline.monitoring.encryption import check_encryption
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.reconcile.repair import repair
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.postgres.overview import read_grants
from outbox_pipeline.postgres.schema import migrate
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import prune, read_all
from tests.fixtures.events import assert_each_exactly_once, delivered_ids, publish
from tests.fixtures.servers import Servers
from tests.fixtures.snapshots import delivered_batches
from tests.fixtures.stores import fresh_database, identifier, url_of

#: A statement in a sentence, and who is to run it: whoever owns what it changes, here the superuser, or a role.
_REMEDY = re.compile(
    r"((?:ALTER|CREATE|GRANT|SELECT) [^;]*); as "
    r"(?:(a superuser|its owner|the owner of outbox\.event)|(\"(?:[^\"]|\"\")+\"|\w+))"
)


def follow(owner: Engine, sentence: str) -> list[str]:
    """Run the statements of a sentence, each as the role it is for; return them."""
    # Behind what is missing, if anything is listed, which looks like SQL as well.
    found = _REMEDY.findall(sentence.partition("): ")[2] or sentence)
    assert found, sentence
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement, is_superuser, role in found:
            connection.exec_driver_sql("RESET ROLE" if is_superuser else f"SET ROLE {role}")
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("RESET ROLE")
    return [statement for statement, _, _ in found]


def finding(settings: Settings, name: str) -> Check:
    """Return one check of the doctor."""
    return next(check for check in examine(settings) if check.name == name)


@pytest.fixture
def pipeline(stores: Stores) -> Iterator[Stores]:
    """Both stores, PostgreSQL as a member of outbox_pipeline whose name needs quotes, where PUBLIC may nothing."""
    name = f'My"App_{uuid4().hex[:8]}'
    url = make_url(stores.engine.url).set(username=name, password="secret").render_as_string(hide_password=False)
    settings = stores.settings.model_copy(update={"postgres_url": SecretStr(url)})
    engine = create_outbox_engine(settings)
    role, database = identifier(name), identifier(str(stores.engine.url.database))
    with stores.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as owner:
        owner.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        owner.exec_driver_sql(f"GRANT outbox_pipeline TO {role}")
        owner.exec_driver_sql(f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC")
        owner.exec_driver_sql(f"GRANT TEMPORARY ON DATABASE {database} TO {role}")
        yield replace(stores, engine=engine, settings=settings)
        engine.dispose()
        owner.exec_driver_sql(f"DROP OWNED BY {role}")
        owner.exec_driver_sql(f"DROP ROLE {role}")


def complaint(engine: Engine) -> str | None:
    """Return what the doctor says of a role's rights."""
    with engine.connect() as connection:
        return grants_problem(**read_grants(connection))


def execute(engine: Engine, *statements: str) -> None:
    """Run statements and commit each."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def role_of(pipeline: Stores) -> str:
    """Return the role's name as SQL has it."""
    return identifier(str(pipeline.engine.url.username))


def rights_that_are_needed(engine: Engine, role: str) -> list[str]:
    """Return all that the doctor asks for, as it names it to a role that has nothing."""
    execute(engine, f"CREATE ROLE {role} NOLOGIN")
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
            return list(read_grants(connection)["missing"])
    finally:
        execute(engine, f"DROP ROLE {role}")


def test_every_right_that_is_missing_comes_back(stores: Stores, pipeline: Stores) -> None:
    """Of each single right: it is named, what the sentence says is done, it is silent, and a delivery works."""
    rights = rights_that_are_needed(stores.engine, f"nothing_{uuid4().hex[:8]}")
    for right in rights:
        execute(stores.engine, f"REVOKE {right} FROM outbox_pipeline, {role_of(pipeline)}")
        before = complaint(pipeline.engine)
        assert before is not None, right
        assert f"({right})" in before

        follow(stores.engine, before)

        assert complaint(pipeline.engine) is None, right
    publish(stores.engine, 3)
    relay(pipeline, until_empty=True)

    assert len(rights) == 29
    assert_each_exactly_once(stores.engine, stores.client)


def test_all_rights_that_are_missing_come_back(stores: Stores, pipeline: Stores) -> None:
    """A role that has none is told each step in an order that works; then it delivers, and adopts a ledger."""
    database = identifier(str(stores.engine.url.database))
    execute(
        stores.engine,
        f"REVOKE outbox_pipeline FROM {role_of(pipeline)}",
        f"REVOKE TEMPORARY ON DATABASE {database} FROM {role_of(pipeline)}",
        "REVOKE ALL ON ALL TABLES IN SCHEMA outbox FROM outbox_pipeline",
        "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM outbox_pipeline",
        "REVOKE ALL ON SCHEMA outbox FROM outbox_pipeline",
    )
    before = complaint(pipeline.engine)
    assert before is not None

    done = follow(stores.engine, before)

    assert [statement.split()[0] for statement in done] == ["SELECT", "GRANT", "GRANT"]
    assert complaint(pipeline.engine) is None
    event_ids = publish(stores.engine, 3)
    relay(pipeline, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client, event_ids)
    execute(stores.engine, "UPDATE outbox.unclaimed SET timeline = timeline + 1")
    adopt(pipeline)
    assert finding(pipeline.settings, "ledger").ok


def test_a_member_that_does_not_inherit_is_told_how(stores: Stores, pipeline: Stores) -> None:
    """Membership alone gives no right to a role with NOINHERIT; to grant the same again would not help."""
    role = role_of(pipeline)
    execute(
        stores.engine,
        f"REVOKE outbox_pipeline FROM {role}",
        f"ALTER ROLE {role} NOINHERIT",
        f"GRANT outbox_pipeline TO {role}",
    )
    before = complaint(pipeline.engine)
    assert before is not None

    done = follow(stores.engine, before)

    assert len(done) == 1
    assert complaint(pipeline.engine) is None


def test_a_role_that_is_no_member_is_told_to_be_one(stores: Stores, pipeline: Stores) -> None:
    """Where the group has its rights they are not granted again."""
    execute(stores.engine, f"REVOKE outbox_pipeline FROM {role_of(pipeline)}")
    before = complaint(pipeline.engine)
    assert before is not None

    done = follow(stores.engine, before)

    assert [statement.split()[:2] for statement in done] == [["GRANT", "outbox_pipeline"]]
    assert complaint(pipeline.engine) is None


def test_a_group_that_is_missing_is_made(stores: Stores, pipeline: Stores) -> None:
    """Where the migration could not create the roles, the sentence begins with that."""
    elsewhere = f"renamed_{uuid4().hex[:8]}"
    execute(
        stores.engine,
        f"ALTER ROLE outbox_pipeline RENAME TO {elsewhere}",
        f"REVOKE {elsewhere} FROM {role_of(pipeline)}",
    )
    try:
        before = complaint(pipeline.engine)
        assert before is not None

        done = follow(stores.engine, before)

        assert done[0] == "CREATE ROLE outbox_pipeline"
        assert complaint(pipeline.engine) is None
    finally:
        execute(
            stores.engine,
            "DO $$ BEGIN IF to_regrole('outbox_pipeline') IS NOT NULL"
            " THEN DROP OWNED BY outbox_pipeline; DROP ROLE outbox_pipeline; END IF; END $$",
            f"ALTER ROLE {elsewhere} RENAME TO outbox_pipeline",
        )


def test_names_with_blanks_are_quoted(servers: Servers, migrated_template: str) -> None:
    """A role `My App` in a database `my data base` is told what can be run as it stands."""
    role = identifier(f"My App {uuid4().hex[:8]}")
    with fresh_database(servers, template=migrated_template, prefix="my data base ") as name:
        owner = create_engine(url_of(servers, name))
        execute(owner, f"REVOKE ALL ON DATABASE {identifier(name)} FROM PUBLIC", f"CREATE ROLE {role} NOLOGIN")
        with owner.connect() as connection:
            connection.exec_driver_sql(f"SET ROLE {role}")
            before = grants_problem(**read_grants(connection))
            connection.commit()
            assert before is not None

            follow(owner, before)

            assert grants_problem(**read_grants(connection)) is None
            connection.exec_driver_sql("RESET ROLE")
        execute(owner, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
        owner.dispose()


def test_a_role_that_is_refused_is_led_to_the_doctor(stores: Stores, pipeline: Stores) -> None:
    """PostgreSQL's refusal names no right that can be granted; the doctor, which the sentence names, does."""
    execute(stores.engine, f"REVOKE outbox_pipeline FROM {role_of(pipeline)}")
    event_ids = publish(stores.engine, 2)
    with pytest.raises(ConfigurationError, match="Run 'outbox doctor' as this role"):
        relay(pipeline, until_empty=True)

    follow(stores.engine, finding(pipeline.settings, "grants").message)

    relay(pipeline, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client, event_ids)


def test_a_sequence_that_cannot_be_read_is_granted(stores: Stores, pipeline: Stores) -> None:
    """The ledger's own sentence about it names the GRANT."""
    execute(stores.engine, "REVOKE ALL ON SEQUENCE outbox.event_position_seq FROM outbox_pipeline")

    follow(stores.engine, finding(pipeline.settings, "ledger").message)

    assert finding(pipeline.settings, "ledger").ok


@pytest.mark.parametrize(
    "remedy", [r"ALTER TABLE outbox\.event DISABLE ROW LEVEL SECURITY", r"ALTER ROLE .+ BYPASSRLS"]
)
def test_a_policy_that_hides_rows_is_got_rid_of(stores: Stores, pipeline: Stores, remedy: str) -> None:
    """Either statement of the sentence is enough, and what was hidden arrives."""
    publish(stores.engine, 2)
    execute(stores.engine, "ALTER TABLE outbox.event ENABLE ROW LEVEL SECURITY")
    said = finding(pipeline.settings, "ledger")
    found = re.search(remedy, said.message)
    assert (said.ok, found is not None) == (False, True), said.message

    execute(stores.engine, str(found and found[0]))

    assert finding(pipeline.settings, "ledger").ok
    relay(pipeline, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def test_statements_that_mend_postgres_do(stores: Stores) -> None:
    """The owner runs each as it stands; what is published then arrives once."""
    delivered_batches(stores, (3,))
    for broken, name in [
        ("ALTER SEQUENCE outbox.event_position_seq CACHE 10", "ledger"),
        ("ALTER TABLE outbox.event ALTER COLUMN position SET GENERATED BY DEFAULT", "ledger"),
        ("ALTER TABLE outbox.event SET (autovacuum_enabled = off)", "postgres vacuum"),
    ]:
        execute(stores.engine, broken)
        said = finding(stores.settings, name)
        assert said.ok is False, broken

        follow(stores.engine, said.message)

        assert finding(stores.settings, name).ok, broken
    publish(stores.engine, 2)
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_sequence_that_was_set_back_is_set_forward(stores: Stores) -> None:
    """`outbox reconcile --repair`, which the sentence names, is enough, also for what was published meanwhile."""
    delivered_batches(stores, (3,))
    prune(stores.engine, read_all(stores.engine)[0].batch_id)
    execute(stores.engine, "SELECT setval('outbox.event_position_seq', 1)")
    event_ids = publish(stores.engine, 1)
    said = finding(stores.settings, "ledger")
    assert (said.ok, "Run 'outbox reconcile --repair'" in said.message) == (False, True)

    repair(stores, reconcile(stores))

    assert finding(stores.settings, "ledger").ok
    event_ids += publish(stores.engine, 2)
    relay(stores, until_empty=True)
    assert set(event_ids) <= set(delivered_ids(stores.client))
    assert len(delivered_ids(stores.client)) == 6


def test_a_ledger_of_another_cluster_is_adopted(stores: Stores) -> None:
    """`outbox adopt`, which the sentence names, is enough."""
    delivered_batches(stores, (3,))
    execute(stores.engine, "UPDATE outbox.unclaimed SET timeline = timeline + 1")
    said = finding(stores.settings, "ledger")
    assert (said.ok, "run 'outbox adopt'" in said.message) == (False, True)

    adopt(stores)

    assert finding(stores.settings, "ledger").ok
    publish(stores.engine, 2)
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_schema_that_is_missing_is_made(stores: Stores) -> None:
    """`outbox init`, which the sentence names, is enough."""
    execute(stores.engine, "DROP SCHEMA outbox CASCADE")
    said = finding(stores.settings, "schema")
    assert (said.ok, "run 'outbox init'" in said.message) == (False, True)

    migrate(stores.engine)

    assert finding(stores.settings, "schema").ok


def init(stores: Stores, said: str) -> None:
    """Run `outbox init`, ClickHouse's part."""
    assert "'outbox init'" in said
    create_table(stores.client)


def alter(stores: Stores, said: str) -> None:
    """Run the statement of the sentence."""
    found = re.search(r"ALTER TABLE .*(?=\.$)", said)
    assert found is not None, said
    stores.client.run(found[0])


def add(stores: Stores, said: str) -> None:
    """Add the column that the sentence names."""
    found = re.search(r"lacks column (.+): add it", said)
    assert found is not None, said
    stores.client.run(f"ALTER TABLE {{table:Identifier}} ADD COLUMN {found[1]}")


def change_back(stores: Stores, said: str) -> None:
    """Give the column the type that the sentence names."""
    found = re.search(r"column (\w+) as .+ instead of (.+): change it back", said)
    assert found is not None, said
    stores.client.run(f"ALTER TABLE {{table:Identifier}} MODIFY COLUMN {found[1]} {found[2]}")


def rename_and_init(stores: Stores, said: str) -> None:
    """Make way for the table that is wanted."""
    assert "rename it, then run 'outbox init'" in said
    stores.client.run("RENAME TABLE {completeness:Identifier} TO other")
    create_table(stores.client)


_OTHER = "CREATE TABLE {completeness:Identifier} (day Date) ENGINE = Log"


def test_what_is_said_of_clickhouse_mends_it(stores: Stores) -> None:
    """Each table is as it was, and what is published then arrives once."""
    for broken, problem, remedy in [
        (["DROP TABLE {table:Identifier}"], table_problem, init),
        (["DROP TABLE {fence:Identifier}"], table_problem, init),
        (["ALTER TABLE {table:Identifier} DROP COLUMN trace_context"], table_problem, add),
        (["ALTER TABLE {table:Identifier} MODIFY COLUMN generation UInt64"], table_problem, change_back),
        (["ALTER TABLE {table:Identifier} RESET SETTING non_replicated_deduplication_window"], table_problem, alter),
        (["ALTER TABLE {table:Identifier} MODIFY SETTING fsync_after_insert = 0"], durability_problem, alter),
        (["DROP VIEW {delivered:Identifier}"], delivered_problem, init),
        (["DROP TABLE {completeness:Identifier}", _OTHER], delivered_problem, rename_and_init),
    ]:
        for statement in broken:
            stores.client.run(statement)
        said = problem(stores.client)
        assert said is not None, broken

        remedy(stores, said)

        assert problem(stores.client) is None, broken
    publish(stores.engine, 2)
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


def test_a_database_of_another_encoding_is_replaced(stores: Stores, servers: Servers) -> None:
    """A database created as the sentence says passes."""
    with fresh_database(servers, template="template0", options="ENCODING 'LATIN1' LOCALE 'C'") as name:
        said = finding(on(stores.settings, url_of(servers, name)), "postgres encoding")
    option = re.search(r"ENCODING '\w+'", said.message)
    assert (said.is_warning, option is not None) == (True, True), said.message

    with fresh_database(servers, template="template0", options=str(option and option[0])) as name:
        assert not finding(on(stores.settings, url_of(servers, name)), "postgres encoding").is_warning


def on(settings: Settings, url: str) -> Settings:
    """Return the same settings on another database."""
    return settings.model_copy(update={"postgres_url": SecretStr(url)})


def test_a_role_that_cannot_make_dagsters_tables_is_granted_that(
    stores: Stores, pipeline: Stores, servers: Servers
) -> None:
    """Since PostgreSQL 15 nobody but the database's owner may create tables in schema public."""
    from dagster_postgres import PostgresRunStorage

    with fresh_database(servers) as name:
        url = make_url(pipeline.engine.url).set(drivername="postgresql+psycopg2", database=name)
        dagster_url = url.render_as_string(hide_password=False)
        settings = stores.settings.model_copy(update={"dagster_url": SecretStr(dagster_url)})
        (said,) = [check for check in examine_dagster(settings, {}) if check.name == "dagster storage"]
        assert said.ok is False

        follow(create_engine(url_of(servers, name)), said.message)

        assert [check.ok for check in examine_dagster(settings, {}) if check.name == "dagster storage"] == [True]
        assert PostgresRunStorage(dagster_url).get_runs() == []


def test_a_variable_is_renamed() -> None:
    """The name that the sentence gives is right."""
    said = check_variables({"OUTBOX_LEASE_SECOND": "5"})
    wrong, right = re.findall(r"OUTBOX_[A-Z_]+", said.message)

    assert (said.ok, wrong) == (False, "OUTBOX_LEASE_SECOND")
    assert check_variables({right: "5"}) == check_variables({})


def test_an_earlier_start_has_partitions() -> None:
    """The day that the sentence names as today is early enough."""
    said = check_start_date(Settings(start_date=date(2999, 1, 1)))
    today = re.search(r"after today \((\S+) UTC\)", said.message)
    assert today is not None, said.message

    assert said.ok is False
    assert check_start_date(Settings(start_date=date.fromisoformat(today[1]))).ok


def test_urls_are_encrypted_as_it_says() -> None:
    """The parameters of the sentence, put behind the URL, and https silence the warning."""
    postgres, over_http = "postgresql+psycopg://u:p@db/app", "http://u:p@ch:8123/default"
    said = check_encryption(Settings(postgres_url=SecretStr(postgres), clickhouse_url=SecretStr(over_http)), {})
    parameters = re.search(r"write (\?\S+)… or (https)", said.message)
    assert parameters is not None, said.message

    assert said.is_warning
    written = SecretStr(f"{postgres}{parameters[1]}/etc/ssl/db.pem")
    encrypted = SecretStr(over_http.replace("http", parameters[2]))
    assert not check_encryption(Settings(postgres_url=written, clickhouse_url=encrypted), {}).is_warning


def test_a_home_of_dagster_is_put_right(tmp_path: Path) -> None:
    """Each sentence leads to the next state: a folder, the package's dagster.yaml in it, its storage by the URL."""
    file = tmp_path / "dagster.yaml"
    relative, empty = check_home("somewhere", {}), check_home(str(tmp_path), {})
    file.write_text("storage:\n  sqlite:\n    base_dir: /tmp\n")
    other = check_home(str(tmp_path), {})
    assert [check.ok for check in (relative, empty, other)] == [False, False, False]
    assert "copy this package's dagster.yaml into it" in empty.message
    assert "let postgres_url under storage be env: OUTBOX_DAGSTER_URL" in other.message

    file.write_text("storage:\n  postgres:\n    postgres_url:\n      env: OUTBOX_DAGSTER_URL\n")
    assert check_home(str(tmp_path), {}).ok
    file.write_bytes((Path(__file__).parents[2] / "dagster.yaml").read_bytes())
    assert check_home(str(tmp_path), {}).ok
