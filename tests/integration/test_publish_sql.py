"""outbox.publish in SQL: json or jsonb by the type of the argument, and json where it has none."""

import asyncio
from json import dumps, loads
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.types.json import Json, Jsonb
from sqlalchemy import Engine, text

from tests.fixtures.roles import LoginUrl

SPACED = '{"b": 1.10,  "a": [1e2, "\\u0000"], "b": 2}'


def contexts(engine: Engine) -> list[str]:
    """Return the contexts that are in the outbox, as they are stored, in their order."""
    with engine.begin() as connection:
        return list(connection.scalars(text("SELECT event_context::text FROM outbox.event ORDER BY position")))


@pytest.fixture
def plain_url(login_url: LoginUrl) -> str:
    """The URL of a producer, as drivers take it."""
    return login_url("outbox_producer").replace("+psycopg", "")


@pytest.mark.parametrize(
    ("arguments", "types"),
    [
        ("$1, $2", "{text,json}"),
        ("'t', $1", "{json}"),
        ("$1::text, $2", "{text,json}"),
        ("$1::varchar, $2", '{"character varying",json}'),
        ("'t', $1, environment => $2", "{json,text}"),
        ("event_context => $1, event_type => $2", "{json,text}"),
        ("$1, $2, $3, $4, $5, $6, $7", '{text,json,text,bigint,"timestamp with time zone",uuid,text}'),
        ("'t', $1::jsonb", "{jsonb}"),
        ("$1::text, $2::jsonb, event_id => $3", "{text,jsonb,uuid}"),
    ],
)
def test_a_parameter_without_a_type_is_json(outbox_engine: Engine, arguments: str, types: str) -> None:
    """What a driver is told of a parameter is json unless the statement says otherwise: it encodes as it always did."""
    with outbox_engine.begin() as connection:
        connection.exec_driver_sql(f"PREPARE call AS SELECT outbox.publish({arguments})")
        found = connection.scalar(text("SELECT parameter_types::text FROM pg_prepared_statements WHERE name = 'call'"))
        connection.exec_driver_sql("DEALLOCATE call")

    assert found == types


@pytest.mark.parametrize(
    ("arguments", "stored"),
    [
        (f"'t', '{SPACED}'", SPACED),
        (f"'t'::text, '{SPACED}'", SPACED),
        (f"'t'::varchar, '{SPACED}'", SPACED),
        (f"'t', '{SPACED}'::json", SPACED),
        (f"'t', '{SPACED}'::text::json", SPACED),
        (f"event_type => 't', event_context => '{SPACED}', environment => 'e'", SPACED),
        ("'t', json_build_object('n', 1)", '{"n" : 1}'),
        ("'t', jsonb_build_object('b', 1.10, 'a', 1e2)", '{"a": 100, "b": 1.10}'),
        ('\'t\'::text, \'{"b":1,"a":[],"b":2}\'::jsonb', '{"a": [], "b": 2}'),
        ("'t'::varchar, '{\"n\":1}'::jsonb, 'e', 2", '{"n": 1}'),
        ("event_context => '{\"n\":1}'::jsonb, event_type => 't', trace_context => 'x'", '{"n": 1}'),
    ],
)
def test_json_keeps_each_character_and_jsonb_what_jsonb_is(outbox_engine: Engine, arguments: str, stored: str) -> None:
    """A literal, json and text that is cast keep spaces, digits and repeated keys; jsonb is stored as it is printed."""
    with outbox_engine.begin() as connection:
        connection.exec_driver_sql(
            f"SELECT outbox.publish({arguments})", execution_options={"no_parameters": True}
        ).one()

    assert contexts(outbox_engine) == [stored]


def test_both_forms_repeat_and_warn_alike(outbox_engine: Engine) -> None:
    """An id that is there changes nothing through either form, and what differs is warned of."""
    said: list[str] = []
    event_id = "00000000-0000-0000-0000-000000000001"
    with outbox_engine.begin() as connection:
        raw: Any = connection.connection.driver_connection
        raw.add_notice_handler(lambda notice: said.append(notice.message_primary))
        for context, kind in (('{"n": 1}', "jsonb"), ('{"n":1}', "jsonb"), ('{"n": 1}', "json"), ('{"n":1}', "json")):
            statement = text(f"SELECT outbox.publish('t', CAST(:context AS {kind}), event_id => CAST(:id AS uuid))")
            given = {"context": context, "id": event_id}
            assert str(connection.scalar(statement, given)) == event_id

    assert len(said) == 1
    assert contexts(outbox_engine) == ['{"n": 1}']


@pytest.mark.parametrize(
    ("arguments", "state"),
    [
        ("'t', NULL", "23502"),
        ("'t', NULL::json", "23502"),
        ("'t', NULL::jsonb", "23502"),
        ("NULL, '{}'::jsonb", "23502"),
        ("'t', '{no json'", "22P02"),
        ("'t', '{no json'::text::json", "22P02"),
        ("repeat('x', 501), '{}'::jsonb", "23514"),
        ("'t', '{}'::text", "42883"),
    ],
)
def test_what_is_no_context_is_refused(plain_url: str, arguments: str, state: str) -> None:
    """NULL, what is no JSON and names that are too long are refused in the same words; text is told to be cast."""
    with psycopg.connect(plain_url) as connection, pytest.raises(psycopg.Error) as refused:
        connection.execute(f"SELECT outbox.publish({arguments})")  # type: ignore[arg-type]

    assert refused.value.sqlstate == state
    assert state != "42883" or "You might need to add explicit type casts" in str(refused.value)
    assert state != "22P02" or "invalid input syntax for type json" in str(refused.value)


def test_drivers_publish_what_they_send(plain_url: str, outbox_engine: Engine) -> None:
    """Psycopg's Json, Jsonb and str, and text that the statement casts, as JDBC's setString needs it."""
    with psycopg.connect(plain_url) as connection:
        for context in (Json({"n": 1}), Jsonb({"n": 2}), '{"n": 3}'):
            connection.execute("SELECT outbox.publish(%s, %s)", ("t", context))
        connection.execute("SELECT outbox.publish(%t, %t::json)", ("t", '{"n": 4}'))

    assert contexts(outbox_engine) == ['{"n": 1}', '{"n": 2}', '{"n": 3}', '{"n": 4}']


def test_a_driver_that_asks_for_types_encodes_as_before(plain_url: str, outbox_engine: Engine) -> None:
    """With asyncpg's codec for json a dict is still json, and it is jsonb where a cast says so."""

    async def publish() -> None:
        connection = await asyncpg.connect(plain_url)
        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, encoder=dumps, decoder=loads, schema="pg_catalog")
        async with connection.transaction():
            await connection.fetchval("SELECT outbox.publish('t', $1)", {"b": 1, "a": 2})
            await connection.fetchval("SELECT outbox.publish($1, $2::jsonb)", "t", {"b": 1, "a": 2})
        await connection.close()

    asyncio.run(publish())

    assert contexts(outbox_engine) == ['{"b": 1, "a": 2}', '{"a": 2, "b": 1}']


def test_a_trigger_publishes_a_jsonb_column(outbox_engine: Engine) -> None:
    """A row trigger hands its column on without a cast."""
    with outbox_engine.begin() as connection:
        connection.exec_driver_sql("""
            CREATE TABLE note (kind text, payload jsonb);
            CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM outbox.publish(NEW.kind, NEW.payload);
                RETURN NULL;
            END $$;
            CREATE TRIGGER tell AFTER INSERT ON note FOR EACH ROW EXECUTE FUNCTION tell();
            INSERT INTO note VALUES ('noted', '{"n": 1}');
        """)

    assert contexts(outbox_engine) == ['{"n": 1}']
