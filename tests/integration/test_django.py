"""Publishing from Django on a real PostgreSQL: an event exists exactly when the transaction of `atomic` does."""

import asyncio
import subprocess
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import IntegrityError, ProgrammingError, router, transaction
from django.db import connection as proxy
from django.db.transaction import TransactionManagementError
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

import outbox_pipeline
from outbox_pipeline import Event, NoTransactionError, PublishError, not_published_count
from outbox_pipeline.django import publish_event, publish_events, publishes
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.testing import Outbox
from outbox_pipeline.testing import outbox as outbox
from tests.fixtures.broken_outbox import counts, missing_table
from tests.fixtures.django_project import on_database
from tests.fixtures.sessions import emails, ids

ROOT = Path(__file__).parents[2]


class UserCreated(Event):
    """What the tests publish."""

    email: str


@pytest.fixture
def connection(django_project: None, published: Engine) -> Iterator[Any]:
    """Django's default connection, on the database of the engine `published`."""
    with on_database(published.url.render_as_string(hide_password=False)) as opened:
        yield opened


def work(connection: Any) -> None:
    """Write a business row."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO business VALUES (1)")


def fail_after(*published: object) -> None:
    """Fail as a later statement of the business may."""
    raise IntegrityError(f"after {len(published)} events")


def test_commit_publishes(connection: Any, published: Engine) -> None:
    """Nobody sees the event before `atomic` ends, everybody after."""
    with transaction.atomic():
        work(connection)
        event_id = publish_event(UserCreated(email="ä\0b"))
        assert counts(published) == (0, 0)

    assert counts(published) == (1, 1)
    assert emails(published) == ["ä\0b"]
    assert ids(published) == [event_id]


def test_rollback_publishes_nothing(connection: Any, published: Engine) -> None:
    """An exception that leaves `atomic`, and `set_rollback`, take the event with them."""
    with pytest.raises(IntegrityError), transaction.atomic():
        fail_after(publish_event(UserCreated(email="a")))
    with transaction.atomic():
        publish_event(UserCreated(email="b"))
        transaction.set_rollback(True)

    assert emails(published) == []


def test_savepoint_rollback_takes_only_its_events_back(connection: Any, published: Engine) -> None:
    """A nested `atomic` that fails takes back what was published in it, best effort or not."""
    with transaction.atomic():
        publish_event(UserCreated(email="before"))
        with pytest.raises(IntegrityError), transaction.atomic():
            fail_after(
                publish_event(UserCreated(email="inside")),
                publish_event(UserCreated(email="inside too"), required=False),
            )
        publish_event(UserCreated(email="after"), required=False)

    assert emails(published) == ["before", "after"]


def test_autocommit_is_refused(connection: Any, published: Engine) -> None:
    """Outside `atomic` nothing is written by any call, unless the caller says so; then it is committed at once."""
    with pytest.raises(
        NoTransactionError, match=r"put both into one transaction\.atomic\(\), or say allow_autocommit=True"
    ):
        publish_event(UserCreated(email="a"))
    with pytest.raises(NoTransactionError, match=r"transaction\.atomic\(using='shop'\)"):
        publish_event(UserCreated(email="a"), using="shop")
    with pytest.raises(NoTransactionError):
        publish_event(UserCreated(email="a"), required=False)
    with pytest.raises(NoTransactionError):
        publish_events([UserCreated(email="a")] * 2)
    assert emails(published) == []

    publish_event(UserCreated(email="b"), allow_autocommit=True)
    publish_event(UserCreated(email="c"), allow_autocommit=True, required=False)
    assert emails(published) == ["b", "c"]


def test_a_transaction_opened_by_hand_counts(connection: Any, published: Engine) -> None:
    """`set_autocommit(False)` opens a transaction too."""
    transaction.set_autocommit(False)
    publish_event(UserCreated(email="a"))
    transaction.rollback()
    publish_event(UserCreated(email="b"))
    transaction.commit()
    transaction.set_autocommit(True)

    assert emails(published) == ["b"]


def test_the_transaction_around_a_test_is_not_the_applications(connection: Any, published: Engine) -> None:
    """In Django's TestCase code without `atomic` is refused as in production, and nested `atomic` is not."""
    from django.test import TestCase

    class Case(TestCase):
        def test_it(self) -> None:
            with pytest.raises(NoTransactionError):
                publish_event(UserCreated(email="a"))
            with transaction.atomic():
                publish_event(UserCreated(email="b"))

    result = unittest.TestResult()
    unittest.TestSuite([Case("test_it")]).run(result)

    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures
    assert emails(published) == []


def test_bulk_keeps_order(connection: Any, published: Engine) -> None:
    """Many events arrive in the order given, over several pages."""
    names = [str(number) for number in range(1005)]
    with transaction.atomic():
        event_ids = publish_events([UserCreated(email=name) for name in names])

    assert emails(published) == names
    assert ids(published) == event_ids


def test_repeat_is_a_no_op_that_says_so(connection: Any, published: Engine) -> None:
    """Publishing an id again changes nothing, and the id returned says so."""
    event_id = uuid4()
    with transaction.atomic():
        first = publish_event(UserCreated(email="first"), event_id=event_id)
    with transaction.atomic():
        again = publish_event(UserCreated(email="again"), event_id=event_id)

    with transaction.atomic():
        same = publish_event(UserCreated(email="first"), event_id=event_id)
        many = publish_events([UserCreated(email="other"), UserCreated(email="first")], event_ids=[event_id] * 2)

    assert (first.is_repeat, again.is_repeat) == (False, True)
    assert (first.differs, again.differs, same.differs) == (False, True, False)
    assert many == [event_id] * 2
    assert emails(published) == ["first"]


def test_best_effort_keeps_the_business(connection: Any, published: Engine, broken: tuple[str, str]) -> None:
    """An outbox that cannot be written costs the event, counted and logged without its content; nothing else."""
    felt, sqlstate = broken
    before = not_published_count()
    with capture_logs() as lines, transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(felt)
        work(connection)
        assert publish_event(UserCreated(email="secret@example.org"), required=False) is None
        work(connection)

    assert not_published_count() == before + 1
    assert [(line["event"], line["sqlstate"]) for line in lines] == [("event_not_published", sqlstate)]
    assert "secret" not in str(lines)
    connection.close()
    with published.connect() as opened:
        assert opened.scalar(text("SELECT count(*) FROM business")) == 2


def test_required_fails_with_djangos_error(connection: Any, published: Engine) -> None:
    """By default a broken outbox fails the transaction with an error that Django's users catch."""
    with missing_table(published), pytest.raises(ProgrammingError), transaction.atomic():
        publish_event(UserCreated(email="a"))

    assert counts(published) == (0, 0)


def test_a_failed_transaction_takes_no_event(connection: Any, published: Engine) -> None:
    """After an error Django refuses every statement until `atomic` ends; best effort does not hide that."""
    with transaction.atomic():
        with pytest.raises(IntegrityError), transaction.atomic(savepoint=False):
            raise IntegrityError
        with pytest.raises(TransactionManagementError):
            publish_event(UserCreated(email="a"), required=False)

    assert emails(published) == []


def test_refused_event_leaves_the_transaction_usable(connection: Any, published: Engine) -> None:
    """A refusal comes before the first statement."""
    with transaction.atomic():
        with pytest.raises(PublishError):
            publish_events([{"n": 1}, {"n": float("nan")}], event_type="t")
        with pytest.raises(TypeError, match="colour"):
            publish_event(UserCreated(email="a"), colour="red")  # type: ignore[call-overload]
        work(connection)

    assert counts(published) == (1, 0)


def test_another_database_is_named_or_routed(
    connection: Any, published: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`using` and the database routers choose the connection; one that is not PostgreSQL is refused by name."""

    class Router:
        def db_for_write(self, model: Any, **hints: Any) -> str | None:
            return "elsewhere" if model.__name__ == "OutboxEvent" else None

    monkeypatch.setattr(router, "routers", [Router()])
    with transaction.atomic():
        with pytest.raises(ConfigurationError, match="'elsewhere' is sqlite"):
            publish_event(UserCreated(email="a"))
        publish_event(UserCreated(email="b"), using="default")

    assert emails(published) == ["b"]


def test_async_code_is_told_what_to_do(connection: Any, published: Engine) -> None:
    """An async view has no transaction: Django says so, and `sync_to_async` of a function with one publishes."""

    def create_user() -> None:
        try:
            with transaction.atomic():
                publish_event(UserCreated(email="a"))
        finally:
            proxy.close()

    async def view() -> None:
        with pytest.raises(SynchronousOnlyOperation, match="sync_to_async"):
            publish_event(UserCreated(email="b"))
        await sync_to_async(create_user)()

    asyncio.run(view())

    assert emails(published) == ["a"]


def test_the_connection_itself_is_refused_with_advice(connection: Any) -> None:
    """Django's connection given to the general function leads to Django's own."""
    for wrong in (proxy, connection):
        with pytest.raises(TypeError, match=r"outbox_pipeline\.django"):
            outbox_pipeline.publish_event(wrong, UserCreated(email="a"))


def test_the_fixture_hears_django(connection: Any, outbox: Outbox) -> None:
    """The pytest plugin records what Django publishes; isolated, no connection is opened."""
    with transaction.atomic():
        publish_event(UserCreated(email="a"))
    connection.close()
    outbox.isolate()
    publish_events([UserCreated(email="b")], required=False)

    assert outbox.published(UserCreated) == [UserCreated(email="a"), UserCreated(email="b")]
    assert connection.connection is None


def test_the_decorator_publishes_what_a_function_returns(connection: Any, published: Engine) -> None:
    """Its work and its events are one transaction, which it opens; an exception or a refused event ends both."""

    @publishes
    def create_users(*addresses: str, fails: bool = False) -> Any:
        work(connection)
        if fails:
            fail_after()
        events = [UserCreated(email=address) for address in addresses]
        return events[0] if len(events) == 1 else events or None

    @publishes(using="default", required=False)
    def return_something_else() -> Any:
        work(connection)
        return "events"

    assert create_users("a") == UserCreated(email="a")
    assert create_users("b", "c") == [UserCreated(email="b"), UserCreated(email="c")]
    assert create_users() is None
    with pytest.raises(IntegrityError):
        create_users("d", fails=True)
    with pytest.raises(PublishError):
        return_something_else()

    assert counts(published) == (3, 3)
    assert emails(published) == ["a", "b", "c"]


def test_the_decorator_refuses_what_has_no_transaction() -> None:
    """Async functions and generators are refused where they are defined."""

    async def awaited() -> None: ...

    def generated() -> Iterator[None]:
        yield

    for wrong in (awaited, generated):
        with pytest.raises(TypeError, match="sync_to_async"):
            publishes(wrong)


def test_psycopg2_does_as_well(connection: Any, published: Engine) -> None:
    """A project on psycopg2 publishes one and many, and best effort tells the SQLSTATE."""
    program = f"""
import sys
sys.modules["psycopg"] = None
import django
from django.conf import settings
databases = {{"default": {_plain(connection.settings_dict)!r}}}
settings.configure(DATABASES=databases, INSTALLED_APPS=["outbox_pipeline.django"])
django.setup()
from django.db import connection, transaction
from outbox_pipeline.django import publish_event, publish_events, publishes
from structlog.testing import capture_logs
with transaction.atomic():
    publish_event({{"email": "100%s"}}, event_type="t")
    publish_events([{{"email": "b"}}, {{"email": "c"}}], event_type="t")
    assert type(connection.connection).__module__.startswith("psycopg2"), type(connection.connection)
with capture_logs() as lines, transaction.atomic():
    connection.cursor().execute("SET LOCAL transaction_read_only = on")
    assert publish_event({{}}, event_type="t", required=False) is None
assert [line["sqlstate"] for line in lines] == ["25006"], lines
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)

    assert done.returncode == 0, done.stderr
    assert emails(published) == ["100%s", "b", "c"]


def _plain(settings: dict[str, Any]) -> dict[str, str]:
    return {name: settings[name] for name in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")}


def test_importing_the_app_needs_no_settings_and_nothing_heavy() -> None:
    """A settings module may import from it; pandas, Dagster and SQLAlchemy stay away, and drivers too."""
    program = "import sys; import outbox_pipeline.django; print(*sorted({n.partition('.')[0] for n in sys.modules}))"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)

    heavy = {"dagster", "pandas", "pyarrow", "clickhouse_connect", "sqlalchemy", "psycopg", "asyncpg"}
    assert not heavy & set(loaded.stdout.split())
