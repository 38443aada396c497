"""This release on the next one's schema: everything goes on, and nothing of it is migrated back or half-way."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from uuid import UUID, uuid4

import pytest
from click.testing import Result
from sqlalchemy import Connection, Engine, create_engine, text

from outbox_pipeline.clickhouse.table import create_table
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.monitoring.doctor import examine
from outbox_pipeline.operations import quarantine
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.operations.completeness import record_completeness
from outbox_pipeline.operations.reconcile.compare import reconcile
from outbox_pipeline.operations.replay import replay
from outbox_pipeline.operations.retention import prune
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.postgres.migrations.files import file_names, known_versions, script
from outbox_pipeline.postgres.schema import check_version, migrate, schema_version
from outbox_pipeline.quarantined import Filter
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.owner import claim_table
from outbox_pipeline.stores import Stores
from tests.fixtures import crew
from tests.fixtures.catalog import not_only_added, read_shape
from tests.fixtures.commands import Outbox
from tests.fixtures.django_project import on_database
from tests.fixtures.events import assert_each_exactly_once, committed_ids
from tests.fixtures.next_release import ADDITIONS, NEXT, NEXT_LOG, OWN, OWN_LOG, NextRelease, add, add_to_log
from tests.fixtures.roles import PUBLISH
from tests.fixtures.servers import Servers
from tests.fixtures.stores import fresh_database, url_of

#: The last migration of before releases ran on the next one's schema; those after it only add.
_LAST_FREE = "0008"

_AFTER_NEXT = f"{int(NEXT) + 1:04d}"
_SET_VERSION = text("UPDATE outbox.schema_version SET version_num = :version")


@pytest.fixture
def outbox(outbox: Outbox, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Outbox:
    """Run a command on this test's databases, whose schema is the next release's; it must succeed."""
    monkeypatch.setenv("OUTBOX_RETENTION_DAYS", "1")
    with stores.engine.begin() as connection:
        add(connection)
    add_to_log(stores.client)

    def run(*arguments: str, given: str | None = None) -> Result:
        result = outbox(*arguments, given=given)
        assert result.exit_code == 0, f"{arguments}: {result.output}{result.stderr}"
        return result

    return run


def publish_by_each_way(outbox: Outbox, engine: Engine) -> UUID:
    """Publish a file, in SQL and by a captured table, one event of each way unfit; returns the id of a fit one."""
    event_id = uuid4()
    lines = [f'{{"event_type": "fit", "event_id": "{event_id}", "event_context": {{}}}}']
    lines += ['{"event_type": "far", "event_date_time": "2999-01-01T00:00:00Z", "event_context": {}}'] * 3
    outbox("publish", "-", given="\n".join(lines))
    with engine.begin() as connection:
        connection.execute(text("SELECT outbox.publish('sql', '{}'), outbox.publish('sql', '[]')"))
        connection.execute(text("CREATE TABLE orders (id bigint, total numeric)"))
        connection.execute(text("SELECT outbox.capture('orders')"))
        connection.execute(text("INSERT INTO orders VALUES (1, 2.5), (2, 3)"))
        connection.execute(text("UPDATE orders SET total = 4"))
        connection.execute(text("DELETE FROM orders"))
    return event_id


def test_every_command_works_on_the_next_schema(outbox: Outbox, stores: Stores) -> None:
    """Publishing, delivery, quarantine, replay, comparison, monitoring, prune: no statement trips over an addition."""
    event_id = publish_by_each_way(outbox, stores.engine)
    outbox("relay", "--until-empty")
    held = [event.event_id for event in quarantine.list_held(stores.engine, Filter())]
    replacement = '{"event_type": "fit", "event_context": {}}'
    outbox("quarantine", "list")
    outbox("quarantine", "show", str(held[0]))
    outbox("quarantine", "replace", str(held[0]), "--with", "-", "--yes", given=replacement)
    outbox("quarantine", "discard", str(held[1]), "--yes", "--note", "given up")
    outbox("quarantine", "requeue", "--all", "--yes")
    outbox("relay", "--until-empty")
    for command in (
        "status",
        "delivered",
        "metrics show",
        "reconcile --by-type",
        "adopt --dry-run",
        "resume",
        "doctor",
    ):
        outbox(*command.split())
    outbox("trace", str(event_id))
    outbox("replay", "--reload", "--batch", str(batch_of(stores.engine, event_id)))
    assert_each_exactly_once(stores.engine, stores.client)

    with stores.engine.begin() as connection:
        connection.execute(crew.AGE)
    outbox("prune")

    assert event_id not in committed_ids(stores.engine)
    said = outbox("init").stdout
    assert f"schema at version {NEXT}, of a newer release" in said
    assert f"at version {NEXT_LOG} in" in said


def batch_of(engine: Engine, event_id: UUID) -> UUID:
    """Return the batch that an event was delivered in."""
    with engine.begin() as connection:
        statement = text("SELECT batch_id FROM outbox.event_status WHERE event_id = :event_id")
        return connection.execute(statement, {"event_id": event_id}).scalar_one()


def test_doctor_warns_of_the_next_version(stores: Stores) -> None:
    """One version newer fails nothing, on either side; what to do is said."""
    with stores.engine.begin() as connection:
        add(connection)
    add_to_log(stores.client)

    found = {check.name: check for check in examine(stores.settings)}
    for name, version, own in (("schema", NEXT, OWN), ("clickhouse table", NEXT_LOG, OWN_LOG)):
        assert (found[name].ok, found[name].is_warning) == (True, True)
        assert (
            f"version {version}, one newer than this code's {own}: this code runs on it; update" in found[name].message
        )


def test_a_part_of_the_next_log_is_not_made(stores: Stores) -> None:
    """This release does not make what is missing of the next one's log: it would be without the additions."""
    add_to_log(stores.client)
    stores.client.run("DROP TABLE {fence:Identifier} SYNC")

    with pytest.raises(ConfigurationError, match=f"version {NEXT_LOG}, newer than this code .*: update"):
        create_table(stores.client)


def test_the_version_after_the_next_is_refused(outbox_engine: Engine) -> None:
    """Two versions newer is not known to have only additions, so everything stops, `outbox init` too."""
    with outbox_engine.begin() as connection:
        connection.execute(_SET_VERSION, {"version": _AFTER_NEXT})

    with pytest.raises(
        ConfigurationError, match=f"{_AFTER_NEXT}, newer than this code, which runs on {OWN} and {NEXT}"
    ):
        migrate(outbox_engine)
    with ledger_transaction(outbox_engine) as connection, pytest.raises(ConfigurationError, match=_AFTER_NEXT):
        check_version(connection)


@pytest.mark.parametrize(
    "act",
    [prune, adopt, record_completeness, reconcile, relay, lambda stores: list(replay(stores, []))],
    ids=["prune", "adopt", "delivered", "reconcile", "relay", "replay"],
)
def test_nothing_is_done_on_the_version_after_the_next(stores: Stores, act: Callable[[Stores], object]) -> None:
    """Each procedure asks for the version itself, whatever command or run calls it."""
    claim_table(stores)
    with stores.engine.begin() as connection:
        connection.execute(_SET_VERSION, {"version": _AFTER_NEXT})

    with pytest.raises(ConfigurationError, match=f"{_AFTER_NEXT}, newer than this code"):
        act(stores)


def test_init_of_an_old_release_leaves_the_next_schema_alone(outbox_engine: Engine) -> None:
    """A process of before that starts with `outbox init` goes on; nothing is taken back."""
    with outbox_engine.begin() as connection:
        add(connection)
        before = read_shape(connection)

    assert migrate(outbox_engine) == NEXT
    with outbox_engine.begin() as connection:
        assert schema_version(connection) == NEXT
        assert read_shape(connection) == before


_DJANGO_MIGRATE = """
import sys
import django
from django.conf import settings
from django.core.management import call_command
settings.configure(DATABASES={"default": eval(sys.argv[1])}, INSTALLED_APPS=["outbox_pipeline.django"])
django.setup()
call_command("migrate", "outbox_pipeline", verbosity=0)
"""


def test_django_migrates_while_old_processes_publish(
    servers: Servers, django_project: None, next_release: NextRelease
) -> None:
    """After `migrate` of the next release a project of this one publishes, and its own `migrate` changes nothing."""
    from django.core.management import call_command
    from django.db import transaction

    from outbox_pipeline.django import publish_event

    with fresh_database(servers) as name, on_database(url_of(servers, name)) as connection:
        call_command("migrate", "outbox_pipeline", verbosity=0)
        with transaction.atomic():
            before = publish_event({}, event_type="t")
        where = {key: connection.settings_dict[key] for key in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")}
        command = [sys.executable, "-P", "-c", _DJANGO_MIGRATE, repr(where)]
        subprocess.run(command, env=next_release.environment(), check=True, timeout=120)
        with transaction.atomic():
            after = publish_event({}, event_type="t")
        said = StringIO()
        call_command("migrate", "outbox_pipeline", stdout=said)
        engine = create_engine(url_of(servers, name))
        with engine.begin() as other:
            version = schema_version(other)
        written = committed_ids(engine)
        engine.dispose()

    assert version == NEXT
    assert written == {before, after}
    assert "No migrations to apply" in said.getvalue()


def test_django_of_an_old_release_notes_its_files_on_the_next_schema(servers: Servers, django_project: None) -> None:
    """Where `outbox init` of the next release came first, `migrate` of this one runs no file again."""
    from django.core.management import call_command

    with fresh_database(servers) as name, on_database(url_of(servers, name)):
        engine = create_engine(url_of(servers, name))
        with engine.begin() as connection:
            run_files(connection, known_versions())
            add(connection)
            before = read_shape(connection)
        call_command("migrate", "outbox_pipeline", verbosity=0)
        with engine.begin() as connection:
            after = read_shape(connection), schema_version(connection)
        engine.dispose()

    assert after == (before, NEXT)


def run_files(connection: Connection, versions: list[str]) -> None:
    """Run numbered files as any tool may, and note the last one's number."""
    if versions[0] == known_versions()[0]:
        connection.exec_driver_sql("CREATE SCHEMA outbox")
        connection.exec_driver_sql("CREATE TABLE outbox.schema_version (version_num varchar(32) PRIMARY KEY)")
        connection.exec_driver_sql("INSERT INTO outbox.schema_version VALUES ('')")
    for name in file_names():
        if name.partition("_")[0] in versions:
            connection.connection.cursor().execute(script(name))  # type: ignore[arg-type]
    connection.execute(_SET_VERSION, {"version": versions[-1]})


@pytest.fixture
def empty(servers: Servers) -> Iterator[Connection]:
    """A transaction on an empty database."""
    with fresh_database(servers) as name:
        engine = create_engine(url_of(servers, name))
        with engine.connect() as connection:
            yield connection
        engine.dispose()


def test_migrations_only_add(empty: Connection) -> None:
    """Each file since releases run on the next one's schema leaves what the release before relies on."""
    versions = known_versions()
    free = versions.index(_LAST_FREE) + 1
    run_files(empty, versions[:free])
    for version in versions[free:]:
        before = read_shape(empty)
        run_files(empty, [version])

        assert not_only_added(before, read_shape(empty)) == [], f"migration {version}"


def test_who_was_given_the_function_alone_may_call_its_second_form(empty: Connection) -> None:
    """A role with EXECUTE on outbox.publish, and no more, keeps what it may do when another form of it is there."""
    versions = known_versions()
    before = versions.index("0017")
    run_files(empty, versions[:before])
    role = f"kiosk_{uuid4().hex[:12]}"
    empty.exec_driver_sql(f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA outbox TO {role}")
    empty.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION outbox.publish TO {role}")
    run_files(empty, versions[before:])
    empty.exec_driver_sql(f"SET ROLE {role}")

    published = text("SELECT outbox.publish('t', '{}') IS NOT NULL, outbox.publish('t', '{}'::jsonb) IS NOT NULL")
    assert tuple(empty.execute(published).one()) == (True, True)


_SECOND_FORM = "CREATE FUNCTION outbox.{}(event_type {}, extra {}) RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (ADDITIONS, None),
        ("ALTER TABLE outbox.batch DROP COLUMN lasting", "column batch.lasting is not what it was"),
        ("ALTER TABLE outbox.batch RENAME COLUMN lasting TO lasts", "column batch.lasting is not what it was"),
        ("ALTER TABLE outbox.batch ALTER failures TYPE bigint", "column batch.failures is not what it was"),
        ("ALTER TABLE outbox.batch ALTER run_id SET NOT NULL", "column batch.run_id is not what it was"),
        ("ALTER TABLE outbox.event ALTER metadata_version DROP DEFAULT", "column event.metadata_version is not"),
        ("ALTER TABLE outbox.gap ADD added text NOT NULL", "column gap.added has no default"),
        ("ALTER TABLE outbox.event ADD first_position bigint", "event.first_position has a name that is in use"),
        ("ALTER TABLE outbox.batch ADD removed text", "batch.removed has a name that is in use"),
        ("ALTER TABLE outbox.gap RENAME TO gaps", "column gap.positions is not what it was"),
        ("DROP FUNCTION outbox.release_capture", "function release_capture is not called as it was"),
        (_SECOND_FORM.format("publish", "text", "text"), "function publish is not what an untyped call of it finds"),
        (_SECOND_FORM.format("publish", "text", "uuid"), "function publish is not what an untyped call of it finds"),
        (
            _SECOND_FORM.format("capture", "regclass", "text"),
            "function capture is not what an untyped call of it finds",
        ),
        (_SECOND_FORM.format("publish", "outbox.event_type_name", "uuid[]"), "function publish is not what"),
        (f"ALTER FUNCTION {PUBLISH} SECURITY INVOKER", "function publish is not called as it was"),
        ("ALTER TABLE outbox.gap ADD CHECK (gap_id > 0)", "may refuse what was written before"),
        ("CREATE UNIQUE INDEX one ON outbox.batch (run_id)", "one may refuse what was written before"),
        ("ALTER TABLE outbox.batch DROP CONSTRAINT batch_has_events", "batch.batch_has_events is not what it was"),
        ("DROP TRIGGER event_is_never_updated ON outbox.event", "gone: CREATE TRIGGER event_is_never_updated"),
        ("REVOKE DELETE ON outbox.event FROM outbox_pipeline", "gone: outbox_pipeline may DELETE event"),
    ],
)
def test_what_is_no_addition_is_found(kept_engine: Engine, statement: str, said: str | None) -> None:
    """The rule for migrations is held by this comparison, which sees each way to break it."""
    with kept_engine.connect() as connection:
        before = read_shape(connection)
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        found = not_only_added(before, read_shape(connection))

    assert bool(found) == (said is not None), found
    assert said is None or any(said in problem for problem in found), found
