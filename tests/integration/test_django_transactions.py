"""Django has one transaction for each database: an event that names none belongs to the one that was opened last."""

import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.db import connections, router, transaction
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from outbox_pipeline import Event, NoTransactionError, not_published_count
from outbox_pipeline.django import publish_event, publish_events, publishes
from tests.fixtures.django_project import on_database

OTHER = r"^The transaction on 'shop' was opened last, .* say using='shop' .*, or using='default' if it does not\.$"


class OrderPlaced(Event):
    """What the decorator publishes."""


@pytest.fixture
def databases(django_project: None, published: Engine) -> Iterator[Engine]:
    """Two connections of Django's, `default` and `shop`, to the database of the engine `published`."""
    url = published.url.render_as_string(hide_password=False)
    with on_database(url), on_database(url, "shop"):
        yield published


def types(engine: Engine) -> list[str]:
    """Return the types of the events that are committed."""
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT event_type FROM outbox.event ORDER BY position")))


def publish(event_type: str, **keywords: Any) -> Any:
    """Publish an event of a type."""
    return publish_event({}, event_type=event_type, **keywords)


def test_an_event_of_a_business_that_is_rolled_back_does_not_stay(databases: Engine) -> None:
    """Without `using` it would be committed in `default` while the shop's order is taken back."""
    with transaction.atomic():
        with pytest.raises(NoTransactionError, match=OTHER), transaction.atomic(using="shop"):
            publish("order_placed")
        with pytest.raises(NoTransactionError, match=OTHER), transaction.atomic(using="shop"):
            publish_events([{}, {}], event_type="order_placed")
        publish("after")

    assert types(databases) == ["after"]


def test_the_sentence_says_what_helps(databases: Engine) -> None:
    """Each of the two databases can be named, and the event then shares that transaction's fate."""
    with transaction.atomic(), transaction.atomic(using="shop"):
        publish("with the shop", using="shop")
        publish("with default", using="default")
        transaction.set_rollback(True, using="shop")
    with transaction.atomic(), transaction.atomic(using="shop"):
        publish("in the shop", using="shop")

    assert types(databases) == ["with default", "in the shop"]


def test_best_effort_goes_on_without_the_event(databases: Engine) -> None:
    """The line says the same sentence, and both transactions commit."""
    before = not_published_count()

    with capture_logs() as lines, transaction.atomic(), transaction.atomic(using="shop"):
        connections["shop"].cursor().execute("INSERT INTO business VALUES (1)")
        assert publish("page_shown", required=False) is None
        assert publish_events([{}, {}], event_type="page_shown", required=False) is None
        connections["default"].cursor().execute("INSERT INTO business VALUES (2)")

    assert not_published_count() == before + 3
    assert all("say using='shop'" in line["error"] for line in lines)
    with databases.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM business")) == 2


def test_the_last_transaction_is_the_right_one(databases: Engine) -> None:
    """An earlier one of another database refuses nothing: outside, ended, or with a savepoint of this one inside."""
    with transaction.atomic(using="shop"), transaction.atomic():
        publish("inside of the shop's")
    with transaction.atomic():
        with transaction.atomic(using="shop"):
            pass
        publish("after the shop's")
    with transaction.atomic(), transaction.atomic(using="shop"), transaction.atomic():
        publish("in a savepoint")

    assert types(databases) == ["inside of the shop's", "after the shop's", "in a savepoint"]


def test_the_order_outlives_a_connection(databases: Engine) -> None:
    """Connections that were closed, as after each request, keep the order again once they are open."""
    for _ in range(2):
        with transaction.atomic():
            with pytest.raises(NoTransactionError, match=OTHER), transaction.atomic(using="shop"):
                publish("order_placed")
            publish("after")
        for alias in ("default", "shop"):
            connections[alias].close()

    assert types(databases) == ["after", "after"]


def test_of_blocks_whose_order_is_not_known_nothing_is_refused(databases: Engine) -> None:
    """A connection that an app has opened before ours was ready, and that is kept, has Django's own list."""
    connection = connections["default"]
    connection.ensure_connection()
    connection.atomic_blocks = []

    with transaction.atomic(using="shop"), transaction.atomic():
        publish("inside of the shop's")
    with transaction.atomic(), transaction.atomic(using="shop"):
        publish("outside of it")

    assert types(databases) == ["inside of the shop's", "outside of it"]


def test_a_router_names_no_transaction(databases: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says where the outbox is, and not whether the event belongs to what is open elsewhere."""

    class Router:
        def db_for_write(self, model: Any, **hints: Any) -> str | None:
            return "shop" if model.__name__ == "OutboxEvent" else None

    monkeypatch.setattr(router, "routers", [Router()])
    with transaction.atomic(using="shop"):
        publish("in the shop")
        last = "The transaction on 'default' was opened last"
        with pytest.raises(NoTransactionError, match=last), transaction.atomic():
            publish("in default")

    assert types(databases) == ["in the shop"]


def test_a_database_that_is_not_postgresql_is_no_rival(databases: Engine) -> None:
    """Nothing could be published there."""
    with transaction.atomic(), transaction.atomic(using="elsewhere"):
        publish("beside sqlite")

    assert types(databases) == ["beside sqlite"]


def test_the_decorator_opens_the_transaction_it_publishes_in(databases: Engine) -> None:
    """What a function returns is published in its own `atomic`, whatever is open around it."""

    @publishes
    def place() -> OrderPlaced:
        with transaction.atomic(using="shop"):
            return OrderPlaced()

    with transaction.atomic(using="shop"):
        place()

    assert types(databases) == ["order_placed"]


def test_a_testcase_around_both_opens_none(databases: Engine) -> None:
    """In Django's TestCase with both databases the order is that of the application's own blocks."""
    from django.test import TestCase

    class Case(TestCase):
        databases = {"default", "shop"}  # noqa: RUF012 - as Django writes it

        def test_it(self) -> None:
            with transaction.atomic():
                publish("in default")
                with pytest.raises(NoTransactionError, match=OTHER), transaction.atomic(using="shop"):
                    publish("in the shop")

    result = unittest.TestResult()
    unittest.TestSuite([Case("test_it")]).run(result)

    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures


@pytest.mark.parametrize("depth", [1, 3])
def test_every_nesting_of_two_databases(databases: Engine, depth: int) -> None:
    """Whatever blocks are open, an event without a name is written exactly when the innermost one is `default`'s."""

    def nested(aliases: tuple[str, ...], then: Callable[[], None]) -> None:
        with ExitStack() as blocks:
            for alias in aliases:
                blocks.enter_context(transaction.atomic(using=alias))
            then()

    expected = []
    for number in range(2**depth):
        aliases = tuple("shop" if number >> place & 1 else "default" for place in range(depth))
        name = "-".join(aliases)
        if aliases[-1] == "default":
            nested(aliases, lambda name=name: publish(name))  # type: ignore[misc]
            expected.append(name)
        else:
            with pytest.raises(NoTransactionError):
                nested(aliases, lambda name=name: publish(name))  # type: ignore[misc]

    assert types(databases) == expected
