"""Whatever PostgreSQL or a driver answers with, the caller gets one sentence of this package, sorted on purpose."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, make_url, text
from structlog.testing import capture_logs

from outbox_pipeline import publish_event
from outbox_pipeline.errors import (
    ConfigurationError,
    ConstraintError,
    LedgerError,
    OutboxError,
    TransientError,
)
from outbox_pipeline.events import EventRow
from outbox_pipeline.operations.adopt import adopt
from outbox_pipeline.postgres.dagster_storage import read_dagster_state, require_storage
from outbox_pipeline.postgres.engine import create_outbox_engine, ledger_transaction
from outbox_pipeline.postgres.extract import extract_events
from outbox_pipeline.postgres.schema import migrate
from outbox_pipeline.publish import insert_events
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.broken_batches import refuse_wal_functions
from tests.fixtures.events import assert_each_exactly_once, publish
from tests.fixtures.servers import Servers
from tests.fixtures.stores import administration, fresh_database, url_of

#: What each state is to be, and whether the server's words are shown.
STATES: dict[str, tuple[type[OutboxError], bool]] = {
    "08006": (TransientError, True),
    "08P01": (TransientError, True),
    "09000": (LedgerError, False),
    "0A000": (ConfigurationError, True),
    "0P000": (ConfigurationError, True),
    "20000": (LedgerError, False),
    "21000": (LedgerError, False),
    "22003": (LedgerError, False),
    "22021": (ConfigurationError, False),
    "22P02": (LedgerError, False),
    "22P05": (ConfigurationError, False),
    "23505": (ConstraintError, True),
    "24000": (LedgerError, False),
    "25001": (LedgerError, False),
    "25006": (TransientError, True),
    "25P02": (TransientError, True),
    "25P03": (TransientError, True),
    "25P04": (TransientError, True),
    "26000": (ConfigurationError, True),
    "28000": (ConfigurationError, True),
    "2BP01": (LedgerError, False),
    "38000": (LedgerError, False),
    "3D000": (ConfigurationError, True),
    "3F000": (ConfigurationError, True),
    "40001": (TransientError, True),
    "40P01": (TransientError, True),
    "42501": (ConfigurationError, True),
    "42P01": (ConfigurationError, True),
    "42P05": (ConfigurationError, True),
    "44000": (ConstraintError, True),
    "53100": (TransientError, True),
    "53400": (ConfigurationError, True),
    "54000": (ConfigurationError, True),
    "55000": (ConfigurationError, True),
    "55006": (TransientError, True),
    "55P03": (TransientError, True),
    "57014": (TransientError, True),
    "57P01": (TransientError, True),
    "57P04": (ConfigurationError, True),
    "58030": (TransientError, True),
    "58P01": (LedgerError, True),
    "72000": (TransientError, True),
    "F0000": (ConfigurationError, True),
    "HV000": (LedgerError, False),
    "P0001": (ConstraintError, True),
    "P0004": (LedgerError, False),
    "XX000": (LedgerError, False),
    "XX001": (LedgerError, True),
    "XX002": (LedgerError, True),
    # Nobody has ever heard of these.
    "QQ123": (LedgerError, False),
    "55ZZZ": (ConfigurationError, True),
}

_SAYS = "word-of-the-server"


@pytest.fixture(scope="module")
def answering(servers: Servers, migrated_template: str) -> Iterator[Engine]:
    """A database that answers whoever reads batches or publishes with the state that `answer_with` names."""
    with fresh_database(servers, template=migrated_template) as name:
        engine = create_outbox_engine(Settings(postgres_url=SecretStr(url_of(servers, name))))
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE public.wanted (state text); INSERT INTO public.wanted VALUES ('');"
                "CREATE FUNCTION public.answer() RETURNS boolean STABLE LANGUAGE plpgsql AS $$ BEGIN"
                f" RAISE EXCEPTION '{_SAYS}' USING ERRCODE = (SELECT state FROM public.wanted),"
                " DETAIL = 'PII-ada', HINT = 'PII-ada'; END $$;"
                "CREATE FUNCTION public.answer_insert() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM public.answer(); RETURN NEW; END $$;"
                "ALTER TABLE outbox.batch RENAME TO kept;"
                "CREATE VIEW outbox.batch AS SELECT * FROM outbox.kept WHERE public.answer();"
                "CREATE TRIGGER answers BEFORE INSERT ON outbox.event"
                " FOR EACH STATEMENT EXECUTE FUNCTION public.answer_insert()"
            )
        yield engine
        engine.dispose()


def answer_with(engine: Engine, state: str) -> None:
    """Let the database of `answering` answer with this state from now on."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE public.wanted SET state = :state"), {"state": state})


def in_the_ledger(engine: Engine) -> None:
    """Ask in a transaction of the ledger."""
    with ledger_transaction(engine) as connection:
        connection.execute(text("SELECT count(*) FROM outbox.batch"))


def in_the_bulk_read(engine: Engine) -> None:
    """Ask as a delivery reads its batch."""
    extract_events(engine, uuid4())


def in_a_publish(engine: Engine) -> None:
    """Ask as `outbox publish` writes a file."""
    row = EventRow(uuid4(), "t", datetime.now(UTC), "test", "{}", 1, None)
    with ledger_transaction(engine) as connection:
        insert_events(connection, [row])


def assert_one_sentence(error: BaseException, state: str = "") -> None:
    """Check what every sentence keeps: one line, the state, nobody's content, no foreign error behind it."""
    said = str(error)
    assert "\n" not in said
    assert f"SQLSTATE {state}" in said or not state
    assert "cannot be reached" not in said
    assert "PII" not in said
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


def answer_to(ask: Callable[[Engine], None], engine: Engine, state: str) -> tuple[type[OutboxError], bool]:
    """Return the kind of error that asking comes to, and whether it has the server's words."""
    answer_with(engine, state)
    with pytest.raises(OutboxError) as raised:
        ask(engine)
    assert_one_sentence(raised.value, state)
    return type(raised.value), _SAYS in str(raised.value)


@pytest.mark.parametrize("ask", [in_the_ledger, in_the_bulk_read, in_a_publish], ids=lambda ask: ask.__name__)
def test_every_state_is_one_sentence_of_its_kind(answering: Engine, ask: Callable[[Engine], None]) -> None:
    """A server that answered is never out of reach and never a traceback, whatever it answered with."""
    found = {state: answer_to(ask, answering, state) for state in STATES}

    assert found == STATES


def test_best_effort_says_the_state(answering: Engine) -> None:
    """An event that was given up is logged with the state, whichever it is, and with nothing that the server said."""
    with capture_logs() as lines:
        for state in STATES:
            answer_with(answering, state)
            with answering.begin() as connection:
                assert publish_event(connection, {}, event_type="t", required=False) is None

    given_up = [line for line in lines if line["event"] == "event_not_published"]
    assert [line["sqlstate"] for line in given_up] == list(STATES)
    assert "PII" not in str(lines)
    assert _SAYS not in str(lines)


def test_ones_own_mistake_stays_what_it_is(outbox_engine: Engine) -> None:
    """What no driver raised is a defect and keeps its class, its words and its traceback."""
    with pytest.raises(KeyError, match="mistake"), ledger_transaction(outbox_engine):
        raise KeyError("mistake")


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("SELECT timestamptz 'infinity'", LedgerError),
        ("SELECT timestamptz '0044-03-15 BC'", LedgerError),
        ("SELECT date '294276-12-31'", LedgerError),
        ("SELECT set_config('DateStyle', 'SQL, DMY', true)::text, now()", ConfigurationError),
        ("SELECT 1 WHERE false", LedgerError),
        ("SELECT 1 UNION ALL SELECT 2", LedgerError),
    ],
)
def test_what_a_driver_cannot_read_is_one_sentence(
    outbox_engine: Engine, statement: str, kind: type[OutboxError]
) -> None:
    """An answer that psycopg or SQLAlchemy has no value for is told by kind and place, and not quoted."""
    with pytest.raises(OutboxError) as raised, ledger_transaction(outbox_engine) as connection:
        connection.execute(text(statement)).one()

    assert type(raised.value) is kind
    assert_one_sentence(raised.value)
    assert "294276" not in str(raised.value)
    assert "outbox doctor" in str(raised.value)


def test_a_server_without_wal_functions_is_worked_with(stores: Stores, servers: Servers) -> None:
    """Where PostgreSQL's storage is another's, `outbox init`, cuts and adopting go on without a timeline."""
    publish(stores.engine, 3)
    refuse_wal_functions(stores.engine)
    relay(stores, until_empty=True)
    with fresh_database(servers) as name:
        empty = create_outbox_engine(Settings(postgres_url=SecretStr(url_of(servers, name))), pooled=False)
        refuse_wal_functions(empty)
        migrate(empty)
        with empty.begin() as connection:
            told = connection.scalar(text("SELECT timeline FROM outbox.unclaimed"))
        made = cut_batches(empty, Settings(), limit=1)
        empty.dispose()

    assert (told, made.batches) == (0, [])
    assert_each_exactly_once(stores.engine, stores.client)
    with stores.engine.begin() as connection:
        connection.execute(text("UPDATE outbox.unclaimed SET system_identifier = 1"))
    assert adopt(stores).was_own is False
    publish(stores.engine, 1)
    relay(stores, until_empty=True)
    assert_each_exactly_once(stores.engine, stores.client)


@pytest.fixture
def ascii_engine(servers: Servers) -> Iterator[Engine]:
    """An engine on a database that does not know which letters its bytes are."""
    name = f"t_{uuid4().hex[:12]}"
    with administration(servers) as server, server.connect() as connection:
        connection.execute(
            text(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
        )
        engine = create_outbox_engine(Settings(postgres_url=SecretStr(url_of(servers, name))), pooled=False)
        yield engine
        engine.dispose()
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def test_an_ascii_database_is_one_sentence(ascii_engine: Engine) -> None:
    """Bytes where the driver wants letters are the configuration's fault, and no traceback."""
    with pytest.raises(ConfigurationError) as raised, ledger_transaction(ascii_engine) as connection:
        connection.execute(text("SELECT chr(233)")).one()

    assert_one_sentence(raised.value)


def test_dagsters_storage_answers_in_one_sentence_too(servers: Servers) -> None:
    """A database that is not there, a URL that is none and a server that is away are told apart."""
    missing = url_of(servers, "no_such_database").replace("+psycopg:", "+psycopg2:")
    away = "postgresql+psycopg2://u:sekret@127.0.0.1:1/dagster"
    for ask in (require_storage, read_dagster_state):
        with pytest.raises(ConfigurationError, match=r"does not exist\. Check OUTBOX_DAGSTER_URL"):
            ask(missing)
        with pytest.raises(ConfigurationError, match="OUTBOX_DAGSTER_URL"):
            ask("no url at all")
        with pytest.raises(TransientError, match="cannot be reached") as raised:
            ask(away)
        assert "sekret" not in str(raised.value)


def ask_once(settings: Settings) -> None:
    """Open a transaction of the ledger and end it."""
    with ledger_transaction(create_outbox_engine(settings, pooled=False)):
        pass


def in_the_ledger_at_once(engine: Engine) -> None:
    """Ask for a row that somebody else has locked, and do not wait for it."""
    with ledger_transaction(engine, lock_timeout_seconds=0.05) as connection:
        connection.execute(text("SELECT FROM outbox.unclaimed"))


def test_a_server_of_another_kind_is_no_server_out_of_reach(servers: Servers) -> None:
    """A primary where the URL asks for a standby has answered: the sentence says what the URL asks for."""
    url = make_url(servers.postgres_url).update_query_dict({"target_session_attrs": "standby"})
    settings = Settings(postgres_url=SecretStr(url.render_as_string(hide_password=False)))

    with pytest.raises(TransientError, match="answers, but none of its hosts is of the kind") as told:
        ask_once(settings)

    assert "cannot be reached" not in str(told.value)


def test_a_variable_that_is_part_of_the_connection_is_named(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment spoils a connection, nobody looks for the fault in the URL alone."""
    monkeypatch.setenv("PGTZ", "Mars/Phobos")

    with pytest.raises(TransientError, match="PGTZ of the environment"):
        ask_once(Settings(postgres_url=SecretStr(servers.postgres_url)))


def test_who_keeps_the_ledger_locked_is_found_by_what_the_sentence_says(outbox_engine: Engine) -> None:
    """The statement in the sentence lists the session that holds the lock."""
    with outbox_engine.connect() as other:
        holder = other.scalar(text("SELECT pg_backend_pid()"))
        other.exec_driver_sql("LOCK outbox.unclaimed")
        with pytest.raises(TransientError, match="55P03") as told:
            in_the_ledger_at_once(outbox_engine)
        (statement,) = re.findall(r"SELECT pid.*\)", str(told.value).partition("locked: ")[2])
        with outbox_engine.connect() as asking:
            found = asking.exec_driver_sql(statement.replace("%", "%%")).all()

    assert holder in [row.pid for row in found]
