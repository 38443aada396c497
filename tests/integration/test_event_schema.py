"""One schema of an event: every list of its columns that is written down elsewhere is compared with it.

A new column begins in `outbox_pipeline.event_schema`; the tests that fail name what else lacks it.
"""

import json
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, get_type_hints
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from outbox_pipeline import event_files, publish_event, publish_events
from outbox_pipeline.clickhouse.table import COLUMNS, column_comments
from outbox_pipeline.event_schema import EVENT_COLUMNS, EXTRACTED, PUBLISHED, SENT, EventColumn
from outbox_pipeline.events import EventRow, prepare_event
from outbox_pipeline.names import MAX_BYTES
from outbox_pipeline.postgres.queries import query_text
from outbox_pipeline.publish import steps
from outbox_pipeline.publish.fields import EventFields
from outbox_pipeline.publish.parameters import numbered
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from outbox_pipeline.testing import PublishedEvent
from tests.fixtures.django_project import on_database

#: How PostgreSQL holds each kind of value.
POSTGRES_TYPES = {
    "name": "text",
    "text": "text",
    "json": "json",
    "number": "bigint",
    "uuid": "uuid",
    "time": "timestamp with time zone",
}

#: Columns of `outbox.event` that never leave it.
OF_POSTGRES_ALONE = {"context_bytes", "published_by"}

#: An event with a value in each column that can be published, none of them a default.
GIVEN: dict[str, Any] = {
    "event_type": "column.compared",
    "event_date_time": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    "environment": "comparison",
    "event_context": '{"n":1.50}',
    "metadata_version": 7,
    "event_id": UUID("01234567-89ab-7cde-8f01-23456789abcd"),
    "trace_context": "00-ab-cd-01",
}

#: Each writes one event with the values of GIVEN.
Write = Callable[[Session], object]


def names(columns: tuple[EventColumn, ...]) -> set[str]:
    """Return the columns' names."""
    return {column.name for column in columns}


def write_alone(session: Session) -> None:
    """Write the event by insert_event.sql."""
    context = json.loads(GIVEN["event_context"])
    publish_event(session, context, **{name: GIVEN[name] for name in GIVEN if name != "event_context"})


def write_together(session: Session) -> None:
    """Write the event by insert_events.sql, together with another one."""
    shared = {name: GIVEN[name] for name in GIVEN if name not in ("event_context", "event_id")}
    context = json.loads(GIVEN["event_context"])
    publish_events(session, [context, {}], event_ids=[GIVEN["event_id"], uuid4()], **shared)


def write_in_sql(session: Session) -> None:
    """Write the event by the function that SQL calls."""
    values = {name: f"CAST(:{name} AS json)" if name == "event_context" else f":{name}" for name in GIVEN}
    given = ", ".join(f"{name} => {value}" for name, value in values.items())
    session.execute(text(f"SELECT outbox.publish({given})"), GIVEN)


@pytest.mark.parametrize("write", [write_alone, write_together, write_in_sql])
def test_every_way_to_publish_stores_every_column(outbox_engine: Engine, write: Write) -> None:
    """What an application gives a column is what PostgreSQL has there, whichever statement wrote it."""
    with Session(outbox_engine) as session, session.begin():
        write(session)
    with outbox_engine.connect() as connection:
        columns = ", ".join(f"{name}::text" if name == "event_context" else name for name in sorted(names(PUBLISHED)))
        statement = text(f"SELECT {columns} FROM outbox.event WHERE event_id = :event_id")
        (stored,) = connection.execute(statement, GIVEN).mappings()

    assert GIVEN.keys() == names(PUBLISHED)
    assert {**stored, "event_context": json.loads(stored["event_context"])} == {
        **GIVEN,
        "event_context": json.loads(GIVEN["event_context"]),
    }


@pytest.mark.parametrize("count", [1, 2])
def test_the_insert_statements_take_every_published_column(count: int) -> None:
    """Each statement that writes events has one parameter a column and is given a text for each."""
    rows = [prepare_event({}, event_type="t") for _ in range(count)]

    (page,) = steps.pages(rows)

    assert set(numbered(page.statement.sql)[1]) == set(page.statement.parameters) == names(PUBLISHED)


@pytest.mark.parametrize(
    "listed",
    [
        pytest.param(EventRow._fields, id="events.EventRow"),
        pytest.param([*get_type_hints(EventFields), "event_context"], id="publish.fields.EventFields"),
        pytest.param(event_files.KEYS, id="event_files.KEYS"),
        pytest.param([field.name for field in fields(PublishedEvent)], id="testing.PublishedEvent"),
    ],
)
def test_python_lists_every_published_column(listed: list[str]) -> None:
    """Whatever carries a published event in Python carries all of it."""
    assert set(listed) == names(PUBLISHED)


def test_every_text_beside_the_context_has_a_limit() -> None:
    """A published name or text without a limit would be one that nothing holds back."""
    assert set(MAX_BYTES) == {column.name for column in PUBLISHED if column.kind in ("name", "text")}


def test_postgres_has_every_column(outbox_engine: Engine) -> None:
    """`outbox.event` has each column that is extracted with its type, and two of its own."""
    with outbox_engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT column_name, data_type, is_nullable = 'YES' FROM information_schema.columns"
            " WHERE table_schema = 'outbox' AND table_name = 'event'"
        )
        found = {name: (data_type, may_be_missing) for name, data_type, may_be_missing in rows}

    assert {name: shape for name, shape in found.items() if name not in OF_POSTGRES_ALONE} == {
        column.name: (POSTGRES_TYPES[column.kind], column.may_be_missing) for column in EXTRACTED
    }
    assert found.keys() >= OF_POSTGRES_ALONE


def test_a_producer_may_set_every_published_column(outbox_engine: Engine) -> None:
    """The role that publishes may insert what is published and nothing else, and the function takes the same."""
    with outbox_engine.connect() as connection:
        granted = connection.exec_driver_sql(
            "SELECT column_name FROM information_schema.column_privileges WHERE grantee = 'outbox_producer'"
            " AND table_schema = 'outbox' AND table_name = 'event' AND privilege_type = 'INSERT'"
        ).scalars()
        taken = connection.exec_driver_sql(
            "SELECT proargnames FROM pg_proc"
            " WHERE oid = to_regprocedure('outbox.publish(text, json, text, bigint, timestamptz, uuid, text)')"
        ).scalar_one()

        assert set(granted) == names(PUBLISHED)
    assert set(taken) == names(PUBLISHED)


def test_what_is_extracted_is_what_is_validated(outbox_engine: Engine) -> None:
    """The statement that reads a batch has each column that is validated and sent, and no other."""
    with outbox_engine.connect() as connection:
        connection.execute(select(func.set_config("outbox.batch_id", str(uuid4()), True)))
        found = connection.exec_driver_sql(query_text("extract_events"))

        assert sorted(found.keys()) == sorted(names(EXTRACTED))


def test_clickhouse_has_every_column(stores: Stores) -> None:
    """The table has the columns in their order, each with its type and a comment, and no other."""
    found = stores.client.rows(
        "SELECT name, type, comment FROM system.columns WHERE database = currentDatabase() AND table = {table:String}"
        " ORDER BY position"
    )

    assert [(row["name"], row["type"]) for row in found] == list(COLUMNS.items())
    assert [row["name"] for row in found] == [column.name for column in EVENT_COLUMNS]
    assert {row["name"]: row["comment"] for row in found} == column_comments()


def test_known_bytes_go_into_the_same_columns(stores: Stores) -> None:
    """A row of known bytes proves what it passes through, so its table has every column of the log with its type."""
    found = stores.client.rows(
        "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {known_bytes:String}"
        " ORDER BY position"
    )

    assert [(row["name"], row["type"]) for row in found] == list(COLUMNS.items())


def test_every_column_arrives(stores: Stores) -> None:
    """What an application publishes in a column is what ClickHouse shows there."""
    with Session(stores.engine) as session, session.begin():
        write_in_sql(session)
    relay(stores, until_empty=True)

    (row,) = stores.client.rows(f"SELECT {', '.join(column.name for column in SENT)} FROM {{table:Identifier}}")

    assert {name: row[name] for name in names(PUBLISHED)} == GIVEN


def test_django_has_every_column(django_project: None, outbox_engine: Engine) -> None:
    """Django's model reads each column of the outbox, and who published."""
    from outbox_pipeline.django.models import OutboxEvent

    with Session(outbox_engine) as session, session.begin():
        write_in_sql(session)
    with on_database(outbox_engine.url.render_as_string(hide_password=False)):
        (row,) = OutboxEvent.objects.values()
    listed = {field.name: field.null for field in OutboxEvent._meta.get_fields() if not field.is_relation}
    missing = {column.name: column.may_be_missing for column in EXTRACTED}

    assert listed == {**missing, "published_by": True}
    given = {name: row[name] for name in names(PUBLISHED) if name != "event_date_time"}
    assert given == {name: value for name, value in GIVEN.items() if name != "event_date_time"}
