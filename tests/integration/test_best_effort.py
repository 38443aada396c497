"""`required=False` in every kind of session: a broken outbox costs the event, never the business."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from outbox_pipeline import Event, PublishError, not_published_count, publish_event, publish_event_async
from tests.fixtures.broken_outbox import counts, missing_table
from tests.fixtures.sessions import Opened, driver_url


class UserCreated(Event):
    """What the tests publish."""

    email: str


SECRET = UserCreated(email="secret@example.org")


async def _between_business_rows(opened: Opened, publish: Callable[[], Any]) -> Any:
    await opened.run("INSERT INTO business VALUES (1)")
    outcome = await publish()
    await opened.run("INSERT INTO business VALUES (2)")
    await opened.commit()
    return outcome


def test_business_goes_on_without_the_event(
    within: Callable[..., Any], published: Engine, broken: tuple[str, str]
) -> None:
    """The business rows before and after are committed; the caller gets None, the log a line, the counter one more."""
    felt, state = broken
    before = not_published_count()

    async def work(opened: Opened) -> Any:
        await opened.run(felt)
        return await _between_business_rows(opened, lambda: opened.publish(SECRET, required=False))

    with capture_logs() as lines:
        assert within(work) is None

    with published.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM business")) == 2
    assert not_published_count() == before + 1
    (line,) = [line for line in lines if line["event"] == "event_not_published"]
    assert (line["event_type"], line["sqlstate"], line["count"]) == ("user_created", state, 1)
    assert "secret" not in str(lines)


def test_default_is_all_or_nothing(within: Callable[..., Any], published: Engine) -> None:
    """Without `required=False` a broken outbox stops the business, and nothing of it is committed."""

    async def work(opened: Opened) -> None:
        with pytest.raises(Exception, match=r"outbox\.event"):
            await _between_business_rows(opened, lambda: opened.publish(SECRET))
        await opened.rollback()

    with missing_table(published):
        within(work)

    assert counts(published) == (0, 0)


def test_many_are_given_up_together(within: Callable[..., Any], published: Engine) -> None:
    """A call's events are written together or not at all, pages that were written before included."""
    before = not_published_count()

    async def work(opened: Opened) -> Any:
        # Not in pg_temp: as the session ends PostgreSQL drops that, and two that drop one trigger may deadlock.
        await opened.run(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF NEW.event_context->>'email' = '1500' THEN RAISE 'no'; END IF; RETURN NEW; END $$"
        )
        await opened.run("CREATE TRIGGER fail BEFORE INSERT ON outbox.event FOR EACH ROW EXECUTE FUNCTION fail()")
        many = [UserCreated(email=str(number)) for number in range(3_000)]
        outcome = await _between_business_rows(opened, lambda: opened.publish_many(many, required=False))
        await opened.run("DROP TRIGGER fail ON outbox.event")
        return outcome

    outcome = within(work)
    with published.begin() as connection:
        connection.execute(text("DROP FUNCTION fail CASCADE"))

    assert outcome is None
    assert counts(published) == (2, 0)
    assert not_published_count() == before + 3_000


def test_refused_event_is_given_up_too(within: Callable[..., Any], published: Engine) -> None:
    """An event that cannot be stored is no reason to stop the business; a keyword nobody knows is a mistake."""
    before = not_published_count()

    async def work(opened: Opened) -> Any:
        with pytest.raises(TypeError, match="evnt_id"):
            await opened.publish(SECRET, required=False, evnt_id=uuid4())
        assert await opened.publish_many([SECRET, {"a": 1}], required=False) is None
        return await _between_business_rows(
            opened, lambda: opened.publish({"secret": float("nan")}, event_type="t", required=False)
        )

    with capture_logs() as lines:
        assert within(work) is None

    assert counts(published) == (2, 0)
    assert not_published_count() == before + 3
    assert "event_context" in lines[-1]["error"]
    assert "secret" not in str(lines)


@pytest.fixture
def deadly_insert(published: Engine) -> Iterator[None]:
    """An INSERT of an event ends the session that sends it."""
    statements = (
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$",
        "CREATE TRIGGER die BEFORE INSERT ON outbox.event FOR EACH ROW EXECUTE FUNCTION die()",
    )
    with published.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    yield
    with published.begin() as connection:
        connection.execute(text("DROP FUNCTION die() CASCADE"))


@pytest.mark.usefixtures("deadly_insert")
def test_lost_connection_surfaces(within: Callable[..., Any], published: Engine) -> None:
    """Best effort never says that the business can go on when its own transaction is gone."""
    before = not_published_count()

    async def work(opened: Opened) -> None:
        await opened.run("INSERT INTO business VALUES (1)")
        with pytest.raises(Exception, match=r"terminat|closed|lost"):
            await opened.publish(SECRET, required=False)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        within(work)

    assert counts(published) == (0, 0)
    assert not_published_count() == before


def test_failed_transaction_surfaces(within: Callable[..., Any], published: Engine) -> None:
    """When the business had failed before, the error is the caller's, not the event's."""

    async def work(opened: Opened) -> None:
        with pytest.raises(Exception, match="division by zero"):
            await opened.run("SELECT 1 / 0")
        with pytest.raises(Exception, match="aborted"):
            await opened.publish(SECRET, required=False)
        await opened.rollback()

    within(work)

    assert counts(published) == (0, 0)


def test_required_refusal_is_raised(within: Callable[..., Any]) -> None:
    """The default raises for an event that cannot be stored."""

    async def work(opened: Opened) -> None:
        with pytest.raises(PublishError, match="event_type"):
            await opened.publish({"a": 1})

    within(work)


@pytest.mark.parametrize("broken", [missing_table], indirect=True, ids=["missing_table"])
def test_pipeline_waits_for_the_answer(published: Engine, broken: tuple[str, str]) -> None:
    """In psycopg's pipeline mode a failure is the event's as well, and does not abort what is queued."""
    url = driver_url(published.url.render_as_string(hide_password=False))

    with psycopg.connect(url) as connection, connection.pipeline():
        connection.execute("INSERT INTO business VALUES (1)")
        assert publish_event(connection, SECRET, required=False) is None
        connection.execute("INSERT INTO business VALUES (2)")

    with published.connect() as after:
        assert after.scalar(text("SELECT count(*) FROM business")) == 2


def test_repeat_is_seen_in_a_pipeline(published: Engine) -> None:
    """What the outbox had already is known when the call returns, awaited or not."""
    url = driver_url(published.url.render_as_string(hide_password=False))
    event_id = uuid4()

    async def repeat(event: UserCreated) -> tuple[bool, bool]:
        async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as opened, opened.pipeline():
            again = await publish_event_async(opened, event, event_id=event_id)
            return again.is_repeat, again.differs

    with psycopg.connect(url, row_factory=dict_row) as connection, connection.pipeline():
        assert not publish_event(connection, SECRET, event_id=event_id).is_repeat
        assert publish_event(connection, UserCreated(email="other"), event_id=event_id).differs
    assert asyncio.run(repeat(SECRET)) == (True, False)
    assert asyncio.run(repeat(UserCreated(email="other"))) == (True, True)
