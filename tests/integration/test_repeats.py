"""A producer cannot swallow another one's event: who repeats an id with something else to say is told, and no more."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from outbox_pipeline import EventId, publish_event, publish_events
from outbox_pipeline.processes import wait_until
from outbox_pipeline.publish.steps import PAGE_ROWS
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores
from tests.fixtures.costs import traffic
from tests.fixtures.roles import PUBLISH

_PUBLISH = text("SELECT outbox.publish(:event_type, CAST(:context AS json), event_id => :event_id)")
_DIFFERS = text("SELECT outbox.event_differs(:event_id, :event_type, :context, 1)")


def repeated(engine: Engine, event_id: UUID, context: dict[str, str], *, event_type: str = "t") -> EventId:
    """Publish an event in a transaction of its own."""
    with engine.begin() as connection:
        return publish_event(connection, context, event_type=event_type, event_id=event_id)


def warnings(engine: Engine, statement: object, **parameters: object) -> list[str]:
    """Run a statement and return what the server warns of, all that a client sees of it."""
    told: list[str] = []
    with engine.begin() as connection:
        driver = connection.connection.driver_connection
        driver.add_notice_handler(  # type: ignore[union-attr]
            lambda said: told.append(" ".join(filter(None, [said.message_primary, said.message_detail, said.context])))
        )
        connection.execute(statement, parameters)  # type: ignore[call-overload]
    return told


def test_who_took_the_id_first_cannot_make_the_other_one_believe(
    login: Callable[..., Engine], outbox_engine: Engine
) -> None:
    """One team writes noise under an id that can be guessed; the other one is told, and the rows say who did it."""
    shop, billing = login("outbox_producer"), login("outbox_producer")
    event_id = uuid5(NAMESPACE_URL, "invoice-4711")
    repeated(shop, event_id, {}, event_type="noise")

    with capture_logs() as lines:
        published = repeated(billing, event_id, {"amount": "12.50"}, event_type="invoice_paid")

    assert (published, published.is_repeat, published.differs) == (event_id, True, True)
    assert [(line["log_level"], line["event_ids"], line["differs"]) for line in lines] == [
        ("warning", [str(event_id)], True)
    ]
    with outbox_engine.begin() as connection:
        (row,) = connection.execute(text("SELECT event_type, published_by FROM outbox.event"))
        assert tuple(row) == ("noise", shop.url.username)


def test_sql_is_warned_with_the_id_alone(login: Callable[..., Engine], outbox_engine: Engine) -> None:
    """The function gives the id back as ever; only a repeat that says something else is warned of, without contents."""
    producer = login("outbox_producer")
    event_id = uuid4()
    given = {"event_type": "t", "context": '{"text": "sekret"}', "event_id": event_id}

    assert warnings(producer, _PUBLISH, **given) == []
    assert warnings(producer, _PUBLISH, **given) == []
    for other in ({"context": '{"text":"sekret"}'}, {"event_type": "other"}):
        (warning,) = warnings(producer, _PUBLISH, **given | other)
        assert f"Event {event_id} is in the outbox with another type, version or context" in warning
        assert "sekret" not in warning


def test_a_caller_of_the_function_alone_is_warned_too(login: Callable[..., Engine], outbox_engine: Engine) -> None:
    """EXECUTE on outbox.publish is all it takes, and does not let anybody ask for more."""
    kiosk = login()
    with outbox_engine.begin() as connection:
        connection.execute(text(f"GRANT USAGE ON SCHEMA outbox TO {kiosk.url.username}"))
        connection.execute(text(f"GRANT EXECUTE ON FUNCTION {PUBLISH} TO {kiosk.url.username}"))
    given = {"event_type": "t", "context": "{}", "event_id": uuid4()}
    warnings(kiosk, _PUBLISH, **given)

    assert len(warnings(kiosk, _PUBLISH, **given | {"event_type": "other"})) == 1
    with kiosk.connect() as connection, pytest.raises(DBAPIError, match="permission denied for function event_differs"):
        connection.execute(_DIFFERS, given)


def test_a_producer_learns_same_or_different_and_every_wrong_guess_is_warned_of(
    login: Callable[..., Engine], outbox_engine: Engine
) -> None:
    """An unknown id and the same event are no difference; of another one nothing comes back but that, and a warning."""
    event_id = uuid4()
    repeated(outbox_engine, event_id, {"pin": "1234"})
    producer = login("outbox_producer")
    right = {"event_id": event_id, "event_type": "t", "context": '{"pin":"1234"}'}

    version = text("SELECT outbox.event_differs(:event_id, :event_type, :context, 2)")
    with producer.begin() as connection:
        assert connection.scalar(version, right) is True
        guesses = (right, right | {"context": '{"pin":"9999"}'}, right | {"event_id": uuid4()})
        assert [connection.scalar(_DIFFERS, guess) for guess in guesses] == [False, True, False]
    (warning,) = warnings(producer, _DIFFERS, **right | {"context": '{"pin":"9999"}'})
    assert "1234" not in warning


def test_an_event_that_has_just_been_committed_by_another_one_is_compared(outbox_engine: Engine) -> None:
    """Who waits for a transaction that holds the id sees what it has written."""
    event_id = uuid4()
    with ThreadPoolExecutor(2) as pool, outbox_engine.connect() as first:
        publish_event(first, {"n": "1"}, event_type="t", event_id=event_id)
        same = pool.submit(repeated, outbox_engine, event_id, {"n": "1"})
        other = pool.submit(repeated, outbox_engine, event_id, {"n": "2"})
        waited = wait_until(lambda: waiting(outbox_engine) == 2, seconds=30)
        first.commit()
        told = [(one.result(timeout=30).is_repeat, one.result(timeout=30).differs) for one in (same, other)]

    assert waited
    assert told == [(True, False), (True, True)]


def waiting(engine: Engine) -> int:
    """Return how many transactions of this database wait for another one to end."""
    statement = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'transactionid'"
    )
    with engine.connect() as connection:
        return connection.scalar(statement) or 0


def test_an_event_that_was_pruned_is_new_again(stores: Stores) -> None:
    """The outbox knows an id as long as its row is there, and says nothing of one that is gone."""
    event_id = uuid4()
    repeated(stores.engine, event_id, {"n": "1"})
    relay(stores, until_empty=True)
    with stores.engine.begin() as connection:
        connection.execute(text("DELETE FROM outbox.event"))

    again = repeated(stores.engine, event_id, {"n": "2"})

    assert (again.is_repeat, again.differs) == (False, False)


def test_only_repeats_cost_more_statements(outbox_engine: Engine) -> None:
    """What is new is one statement a page as ever; a page with repeats asks twice more, however many there are."""
    ids = [uuid4() for _ in range(2 * PAGE_ROWS)]
    with outbox_engine.begin() as connection, traffic(outbox_engine) as sent:
        publish_event(connection, {}, event_type="t")
        one = len(sent.statements)
        publish_events(connection, [{}] * len(ids), event_type="t", event_ids=ids)
        two_pages = len(sent.statements) - one
        publish_events(connection, [{}] * len(ids), event_type="t", event_ids=ids)
        repeats = len(sent.statements) - one - two_pages

    # One of the last is asked once over each connection, whether a pooler answers.
    assert (one, two_pages, repeats) == (1, 2, 6 + 1)


@pytest.mark.parametrize(
    "change",
    [
        "DROP FUNCTION outbox.event_differs",
        "REVOKE EXECUTE ON FUNCTION outbox.event_differs FROM outbox_producer",
    ],
    ids=["older schema", "own rights"],
)
def test_a_repeat_that_cannot_be_compared_does_no_harm(
    login: Callable[..., Engine], outbox_engine: Engine, change: str
) -> None:
    """Before the schema is migrated, or without the right to ask, a repeat is what it was and business goes on."""
    producer = login("outbox_producer")
    event_id = uuid4()
    with outbox_engine.begin() as connection:
        connection.exec_driver_sql(change)

    repeated(producer, event_id, {"n": "1"})
    with producer.begin() as connection:
        again = publish_event(connection, {"n": "2"}, event_type="t", event_id=event_id)
        many = publish_events(connection, [{"n": "2"}] * 2, event_type="t", event_ids=[event_id, uuid4()])

    assert (again.is_repeat, again.differs) == (True, False)
    with outbox_engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM outbox.event")) == len(many)
