"""The admin pages show events and quarantine, change nothing and cost the same however large the outbox is."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.settings import Settings
from tests.fixtures.django_project import on_database
from tests.fixtures.events import publish_unlimited

EVENTS = "/admin/outbox_pipeline/outboxevent/"
QUARANTINE = "/admin/outbox_pipeline/quarantinedevent/"

FILL = text("""
    SELECT outbox.publish('type_' || n % 3, '{"n": 1.10, "who": "<b>ada</b>"}', environment => 'test',
        event_date_time => CASE n WHEN 1 THEN timestamptz 'infinity' ELSE clock_timestamp() END)
    FROM generate_series(1, 30) AS n
""")
QUARANTINED = text("""
    WITH batch AS (
        INSERT INTO outbox.batch (batch_id, positions, first_position, last_position, recorded_on, event_count,
            context_bytes, oldest_recorded_at)
        VALUES (gen_random_uuid(), '{[2,4)}', 2, 3, current_date, 2, 1, now()) RETURNING batch_id
    )
    INSERT INTO outbox.quarantined_event (position, event_id, event_type, batch_id, reasons)
    SELECT 1, event_id, event_type, batch_id, '{time_too_far_ahead,environment_empty}'
    FROM batch, outbox.event WHERE position = 1
""")


@pytest.fixture
def engine(postgres_url: str, django_project: None) -> Iterator[Engine]:
    """A database with thirty events, one of them in quarantine and two in a batch, that Django is on."""
    engine = create_outbox_engine(Settings(postgres_url=SecretStr(postgres_url)))
    with engine.begin() as connection:
        connection.execute(FILL)
        connection.execute(QUARANTINED)
    with on_database(postgres_url):
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        yield engine
    engine.dispose()


def client_of(**rights: Any) -> Any:
    """Return a browser logged in as a new user."""
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client()
    client.force_login(User.objects.create_user("ada", is_staff=True, **rights))
    return client


@pytest.fixture
def admin(engine: Engine) -> Any:
    """A superuser's browser."""
    return client_of(is_superuser=True)


def page(client: Any, path: str) -> str:
    """Return what a page says; fails when it is none."""
    response = client.get(path)
    assert response.status_code == 200, (path, response.status_code)
    content: str = response.content.decode()
    return content


def rows(content: str) -> int:
    """Return how many rows a list shows."""
    return len(re.findall(r'<th class="field-event_id">', content))


def id_of(engine: Engine, position: int) -> str:
    """Return the id of the event at *position*."""
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT event_id FROM outbox.event WHERE position = :p"), {"p": position}))


def test_events_are_listed_and_filtered(admin: Any, engine: Engine) -> None:
    """All events with their status; filters by status and type; one event by its id."""
    assert rows(page(admin, EVENTS)) == 30
    assert rows(page(admin, EVENTS + "?status=in_flight")) == 2
    assert rows(page(admin, EVENTS + "?status=held")) == 1
    assert rows(page(admin, EVENTS + "?type=type_1")) == 10
    assert rows(page(admin, EVENTS + "?type=type_1&status=held")) == 1
    assert rows(page(admin, f"{EVENTS}?q={id_of(engine, 7)}")) == 1
    assert rows(page(admin, EVENTS + "?q=ada")) == 0


def test_names_from_before_there_were_limits_are_cut(admin: Any, engine: Engine) -> None:
    """A list stays one that can be read, whatever an event is called."""
    publish_unlimited(engine, event_type="repeat('x', 5000)", environment="repeat('e', 5000)")

    content = page(admin, EVENTS)

    assert rows(content) == 31
    assert f">{'x' * 199}…<" in content
    assert f">{'e' * 199}…<" in content
    assert "x" * 200 not in content
    assert "e" * 200 not in content


def test_an_event_is_shown_with_its_context(admin: Any, engine: Engine) -> None:
    """Character for character, as text and not as HTML; with status and reasons, and a time Python has no word for."""
    content = page(admin, EVENTS + "1/change/")

    assert "{&quot;n&quot;: 1.10, &quot;who&quot;: &quot;&lt;b&gt;ada&lt;/b&gt;&quot;}" in content
    assert "infinity" in content
    assert "time_too_far_ahead" in content
    assert f">{engine.url.username}<" in content
    assert "pending" in page(admin, EVENTS + "9/change/")


def test_quarantine_is_listed_and_leads_to_the_event(admin: Any, engine: Engine) -> None:
    """Refused events with all reasons; their page links to the event."""
    content = page(admin, QUARANTINE)
    assert rows(content) == 1
    assert "environment_empty" in content
    assert rows(page(admin, QUARANTINE + "?status=discarded")) == 0
    assert rows(page(admin, QUARANTINE + "?type=type_1")) == 1

    assert f'href="{EVENTS}1/change/"' in page(admin, QUARANTINE + "1/change/")


def test_what_became_of_a_refused_event_is_shown(admin: Any, engine: Engine) -> None:
    """A replaced event names its replacement in both lists, and leads nowhere once its row was pruned."""
    with engine.begin() as connection:
        successor = connection.scalar(
            text(
                "UPDATE outbox.quarantined_event SET status = 'replaced', resolved_at = now(), replaced_by ="
                " (SELECT event_id FROM outbox.event WHERE position = 2) RETURNING replaced_by"
            )
        )

    assert rows(page(admin, EVENTS + "?status=replaced")) == 1
    assert rows(page(admin, QUARANTINE + "?status=replaced")) == 1
    assert "?status=replaced" in page(admin, EVENTS)
    assert "?status=replaced" in page(admin, QUARANTINE)
    assert str(successor) in page(admin, QUARANTINE + "1/change/")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM outbox.event WHERE position = 1"))
    pruned = page(admin, QUARANTINE + "1/change/")
    assert f"{EVENTS}1/change/" not in pruned
    assert "its row was pruned" in pruned


@pytest.mark.parametrize("base", [EVENTS, QUARANTINE])
def test_nothing_can_be_changed(admin: Any, engine: Engine, base: str) -> None:
    """Not even a superuser has a button, and what a form would post is forbidden."""
    for path in (base, base + "1/change/"):
        content = page(admin, path)
        assert 'name="_save"' not in content
        assert "deletelink" not in content
        assert 'name="action"' not in content
    for path in (base + "add/", base + "1/delete/", base + "1/change/"):
        assert admin.post(path, {"event_type": "other", "post": "yes"}).status_code == 403


def test_models_refuse_to_write(engine: Engine) -> None:
    """Code that saves or deletes an event is told so in Python."""
    from outbox_pipeline.django.models import OutboxEvent

    event = OutboxEvent.objects.get(pk=1)
    with pytest.raises(TypeError, match="publish_event"):
        event.save()
    with pytest.raises(TypeError, match="read only"):
        event.delete()


def test_staff_without_the_permission_sees_nothing(engine: Engine) -> None:
    """Each page needs its view permission; there are no others to give."""
    from django.contrib.auth.models import Permission

    assert client_of().get(EVENTS).status_code == 403
    given = Permission.objects.filter(content_type__app_label="outbox_pipeline")
    assert {permission.codename for permission in given} == {"view_outboxevent", "view_quarantinedevent"}


def test_a_large_outbox_costs_no_more(admin: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list reads, filters and counts only the newest events; an older one is found by its id."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from outbox_pipeline.django import admin as pages

    monkeypatch.setattr(pages, "NEWEST", 20)
    with CaptureQueriesContext(connection) as queries:
        assert rows(page(admin, EVENTS)) == 20
        assert rows(page(admin, EVENTS + "?type=type_1")) == 6
        assert rows(page(admin, EVENTS + "?status=held")) == 0
    # Django forgets them when the next request begins.
    captured = list(queries)
    assert rows(page(admin, f"{EVENTS}?q={id_of(engine, 1)}")) == 1

    of_events = [query["sql"] for query in captured if '"outbox"."event"' in query["sql"]]
    bounded = [sql for sql in of_events if '"position" >= 11' in sql or "LIMIT 1" in sql]
    assert bounded == of_events != []
    assert not any("event_context" in sql for sql in of_events)
