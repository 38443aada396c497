"""Publishing through every kind of session on a real PostgreSQL: an event exists exactly when the transaction does."""

from collections.abc import Callable
from datetime import UTC, datetime
from inspect import isawaitable
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, select
from structlog.contextvars import bound_contextvars
from structlog.testing import capture_logs

from outbox_pipeline import Event, NoTransactionError, PublishError, publishes
from outbox_pipeline.postgres.tables import event as event_table
from outbox_pipeline.publish.steps import PAGE_ROWS
from tests.fixtures.sessions import Opened, emails, ids


class UserCreated(Event):
    """What the tests publish."""

    email: str


def test_commit_publishes(within: Callable[..., Any], published: Engine) -> None:
    """Nobody sees the event before the caller commits, everybody after."""

    async def work(opened: Opened) -> UUID:
        event_id: UUID = await opened.publish(UserCreated(email="ä\0b"), trace_context="00-ab")
        assert emails(published) == []
        await opened.commit()
        return event_id

    event_id = within(work)

    assert emails(published) == ["ä\0b"]
    assert ids(published) == [event_id]


def test_rollback_publishes_nothing(within: Callable[..., Any], published: Engine) -> None:
    """An event of a transaction that was rolled back never existed."""

    async def work(opened: Opened) -> None:
        await opened.publish(UserCreated(email="a"))
        await opened.rollback()

    within(work)

    assert emails(published) == []


def test_savepoint_rollback_takes_only_its_events_back(within: Callable[..., Any], published: Engine) -> None:
    """What a rolled-back savepoint published is gone, best effort or not; the rest stays."""

    async def work(opened: Opened) -> None:
        await opened.publish(UserCreated(email="before"))
        await opened.run("SAVEPOINT mine")
        await opened.publish(UserCreated(email="inside"))
        await opened.publish(UserCreated(email="inside too"), required=False)
        await opened.run("ROLLBACK TO SAVEPOINT mine")
        await opened.publish(UserCreated(email="after"), required=False)
        await opened.commit()

    within(work)

    assert emails(published) == ["before", "after"]


def test_autocommit_is_refused(within: Callable[..., Any], published: Engine) -> None:
    """Without a transaction to share nothing is written, by no call."""

    async def work(opened: Opened) -> None:
        with pytest.raises(NoTransactionError, match="allow_autocommit=True"):
            await opened.publish(UserCreated(email="a"))
        with pytest.raises(NoTransactionError):
            await opened.publish(UserCreated(email="a"), required=False)
        with pytest.raises(NoTransactionError):
            await opened.publish_many([UserCreated(email="a")] * 2)

    within(work, autocommit=True)

    assert emails(published) == []


def test_autocommit_is_taken_when_asked_for(within: Callable[..., Any], published: Engine) -> None:
    """An application that publishes nothing but the event may say so; it is committed at once."""

    async def work(opened: Opened) -> None:
        await opened.publish(UserCreated(email="a"), allow_autocommit=True)
        await opened.publish(UserCreated(email="b"), allow_autocommit=True, required=False)

    within(work, autocommit=True)

    assert emails(published) == ["a", "b"]


def test_bulk_keeps_order_over_pages(within: Callable[..., Any], published: Engine) -> None:
    """Many events arrive in the order given, whatever their types hold, and their ids are returned in it."""
    names = [str(number) for number in range(PAGE_ROWS + 5)]

    async def work(opened: Opened) -> Any:
        plain = await opened.publish_many([UserCreated(email=name) for name in names])
        odd = await opened.publish_many(
            [{"email": "odd"}, {"email": "odder"}], event_type="a\x1eb", trace_context="\x1d", required=False
        )
        await opened.commit()
        return plain + odd

    event_ids = within(work)

    assert emails(published) == [*names, "odd", "odder"]
    assert ids(published) == event_ids


def test_repeat_is_a_no_op_that_says_so(within: Callable[..., Any], published: Engine) -> None:
    """The first event with an id stays; publishing it again changes nothing, and the id returned says so."""
    event_id, other = uuid4(), uuid4()

    async def work(opened: Opened) -> Any:
        first = await opened.publish(UserCreated(email="first"), event_id=event_id)
        again = await opened.publish(UserCreated(email="again"), event_id=str(event_id))
        assert await opened.publish_many(
            [UserCreated(email="again"), UserCreated(email="other")], event_ids=[event_id, other]
        ) == [event_id, other]
        await opened.commit()
        return first, again

    first, again = within(work)

    assert (first, first.is_repeat) == (event_id, False)
    assert (again, again.is_repeat) == (event_id, True)
    assert emails(published) == ["first", "other"]


def test_a_repeat_that_says_something_else_is_told(within: Callable[..., Any], published: Engine) -> None:
    """Another type, version or context under a known id is a repeat that differs; another time or trace is not."""
    event_id = uuid4()
    first = {"event_id": event_id, "event_type": "t", "metadata_version": 2}
    again = [
        ({"n": 1}, first),
        ({"n": 1}, first | {"environment": "other", "event_date_time": datetime.now(UTC), "trace_context": "other"}),
        ({"n": 2}, first),
        ({"n": 1}, first | {"event_type": "other"}),
        ({"n": 1}, first | {"metadata_version": 3}),
    ]

    async def work(opened: Opened) -> Any:
        assert not (await opened.publish({"n": 1}, **first)).differs
        told = [await opened.publish(context, **fields) for context, fields in again]
        told += [await opened.publish({"n": 2}, required=False, **first)]
        await opened.commit()
        return told

    told = within(work)

    assert told == [event_id] * 6
    assert [one.is_repeat for one in told] == [True] * 6
    assert [one.differs for one in told] == [False, False, True, True, True, True]
    assert len(ids(published)) == 1


def test_many_at_once_name_those_that_say_something_else(within: Callable[..., Any], published: Engine) -> None:
    """The log names ids and counts, the ids come back as ever, and the first event stays whoever repeats it."""
    known, other, fresh, twice = (uuid4() for _ in range(4))

    async def work(opened: Opened) -> Any:
        await opened.publish_many([{"email": "a"}, {"email": "b"}], event_type="t", event_ids=[known, other])
        texts = ["a", "sekret", "c", "first", "second"]
        event_ids = await opened.publish_many(
            [{"email": text} for text in texts], event_type="t", event_ids=[known, other, fresh, twice, twice]
        )
        await opened.commit()
        return event_ids

    with capture_logs() as lines:
        assert within(work) == [known, other, fresh, twice, twice]

    assert emails(published) == ["a", "b", "c", "first"]
    assert [line for line in lines if line["event"] == "event_repeated"] == [
        {"event": "event_repeated", "log_level": "info", "event_id": None, "event_type": "t", "count": 1},
        {
            "event": "event_repeated",
            "log_level": "warning",
            "event_ids": [str(other), str(twice)],
            "count": 2,
            "differs": True,
        },
    ]
    assert "sekret" not in str(lines)


def test_refused_event_leaves_the_transaction_usable(within: Callable[..., Any], published: Engine) -> None:
    """A refusal comes before the first statement, so the caller can go on and commit the rest."""

    async def work(opened: Opened) -> None:
        await opened.publish(UserCreated(email="good"))
        with pytest.raises(PublishError, match="event_context"):
            await opened.publish_many([{"a": 1}, {"a": float("nan")}], event_type="t")
        with pytest.raises(TypeError, match="evnt_type"):
            await opened.publish({}, evnt_type="t")
        await opened.publish(UserCreated(email="also good"))
        await opened.commit()

    within(work)

    assert emails(published) == ["good", "also good"]


def test_decorated_use_case_publishes_what_it_returns(within: Callable[..., Any], published: Engine) -> None:
    """The events a use case returns share its transaction; an exception publishes nothing."""

    async def work(opened: Opened) -> Any:
        sign_up = publishes(_sign_up_awaited if opened.is_async else _sign_up)
        one = await _result(sign_up(opened.session, ["one"]))
        many = await _result(sign_up(opened.session, ["two", "three"]))
        assert await _result(sign_up(opened.session, [])) is None
        with pytest.raises(LookupError):
            await _result(sign_up(opened.session, ["four", "nobody"]))
        assert emails(published) == []
        await opened.commit()
        return [one, *many]

    returned = within(work)

    assert [event.email for event in returned] == emails(published) == ["one", "two", "three"]


def _sign_up(session: Any, names: list[str]) -> Any:
    if "nobody" in names:
        raise LookupError
    events = [UserCreated(email=name) for name in names]
    return events if len(events) > 1 else next(iter(events), None)


async def _sign_up_awaited(session: Any, names: list[str]) -> Any:
    return _sign_up(session, names)


async def _result(returned: Any) -> Any:
    return await returned if isawaitable(returned) else returned


def test_trace_of_the_caller_is_kept(within: Callable[..., Any], published: Engine) -> None:
    """The trace the code runs in is stored with each event, unless the caller names another."""

    async def work(opened: Opened) -> None:
        with bound_contextvars(correlation_id="c-1"):
            await opened.publish(UserCreated(email="a"))
            await opened.publish_many([UserCreated(email="b")] * 2)
            await opened.publish(UserCreated(email="c"), trace_context="mine")
        await opened.publish(UserCreated(email="d"))
        await opened.commit()

    within(work)

    with published.connect() as connection:
        traces = list(connection.scalars(select(event_table.c.trace_context).order_by(event_table.c.position)))
    assert traces == ["correlation_id=c-1"] * 3 + ["mine", None]
