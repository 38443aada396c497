"""Best effort passes over whatever goes wrong before an event is written, in every session, and over nothing else.

None says that the transaction goes on, and the server has said so.
"""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from outbox_pipeline import not_published_count, publish_event
from outbox_pipeline.django import publish_event as publish_in_django
from outbox_pipeline.django import publish_events as publish_many_in_django
from tests.fixtures.django_project import on_database
from tests.fixtures.hostile import REFUSED, SECRET, Reading, fail
from tests.fixtures.sessions import Opened, driver_url


def business(engine: Engine) -> tuple[int, int]:
    """Return how many business rows and how many events are committed."""
    with engine.connect() as connection:
        statement = "SELECT (SELECT count(*) FROM business), (SELECT count(*) FROM outbox.event)"
        row = connection.execute(text(statement)).one()
        return row[0], row[1]


def test_the_business_goes_on_whatever_an_events_values_raise(within: Callable[..., Any], published: Engine) -> None:
    """Each refusal, of one event and of several, is None and a line, and the transaction commits."""
    before = not_published_count()

    async def work(opened: Opened) -> None:
        await opened.run("INSERT INTO business VALUES (1)")
        for _, value, keywords in REFUSED.values():
            assert await opened.publish(value, required=False, **{"event_type": "t", **keywords}) is None
        assert await opened.publish_many([{}, Reading(fail)], event_type="t", required=False) is None
        await opened.run("INSERT INTO business VALUES (2)")
        await opened.commit()

    with capture_logs() as lines:
        within(work)

    assert business(published) == (2, 0)
    assert not_published_count() == before + len(REFUSED) + 2
    assert len(lines) == len(REFUSED) + 1
    assert SECRET not in str(lines)


def test_the_business_goes_on_in_django(django_project: None, published: Engine) -> None:
    """The same without a session, inside `atomic`."""
    from django.db import connection, transaction

    with on_database(published.url.render_as_string(hide_password=False)), transaction.atomic():
        connection.cursor().execute("INSERT INTO business VALUES (1)")
        for _, value, keywords in REFUSED.values():
            assert publish_in_django(value, required=False, **{"event_type": "t", **keywords}) is None
        assert publish_many_in_django([{}, Reading(fail)], event_type="t", required=False) is None
        connection.cursor().execute("INSERT INTO business VALUES (2)")

    assert business(published) == (2, 0)


def test_what_a_driver_cannot_send_is_given_up(published: Engine) -> None:
    """A text that the connection's encoding has no letters for fails in the client, between savepoint and insert."""
    url = driver_url(published.url.render_as_string(hide_password=False))

    with capture_logs() as lines, psycopg.connect(url, client_encoding="latin1") as connection:
        connection.execute("INSERT INTO business VALUES (1)")
        assert publish_event(connection, {"price": "5 €"}, event_type="t", required=False) is None
        connection.execute("INSERT INTO business VALUES (2)")

    assert business(published) == (2, 0)
    assert [line["error"] for line in lines] == ["UnicodeEncodeError"]


def test_what_listens_to_the_applications_statements_may_fail(published: Engine) -> None:
    """An application's own hook that raises at the INSERT of an event costs the event, not the business."""
    engine = create_engine(published.url)

    @event.listens_for(engine, "before_cursor_execute")
    def refuse(*arguments: Any) -> None:
        if "INSERT INTO outbox.event" in arguments[2]:
            fail()

    with Session(engine) as session, session.begin():
        session.execute(text("INSERT INTO business VALUES (1)"))
        assert publish_event(session, {}, event_type="t", required=False) is None
        session.execute(text("INSERT INTO business VALUES (2)"))
    engine.dispose()

    assert business(published) == (2, 0)


def test_a_value_that_breaks_the_transaction_surfaces(published: Engine) -> None:
    """Where reading a value sends a statement that fails, the business cannot go on, and None would say it does."""
    url = driver_url(published.url.render_as_string(hide_password=False))

    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO business VALUES (1)")
        lazy = Reading(lambda: connection.execute("SELECT 1 / 0"))
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            publish_event(connection, lazy, event_type="t", required=False)

    assert business(published) == (0, 0)
