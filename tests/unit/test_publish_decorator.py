"""What `@publishes` refuses before the function has done anything, and how it finds the session."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from outbox_pipeline import Event, PublishError, publishes

SESSION = Session(create_engine("sqlite://"))


class Done(Event):
    """What the tests publish."""


def test_no_session_is_found_before_the_function_runs() -> None:
    """A use case that could not publish does nothing."""
    ran = []

    @publishes
    def use_case(number: int) -> list[Event]:
        ran.append(number)
        return []

    with pytest.raises(TypeError, match="use_case was called without a session"):
        use_case(1)
    assert ran == []


def test_session_may_be_any_argument_or_named() -> None:
    """A method's session, a keyword's, a default's and the one that is named are found."""

    class Service:
        """A class with use cases."""

        @publishes
        def act(self, number: int, session: Session) -> list[Event]:
            return []

    @publishes(session="db")
    def named(other: object, db: Session = SESSION) -> tuple[Event, ...]:
        return ()

    @publishes
    async def awaited(session: AsyncSession) -> None:
        return None

    assert Service().act(1, SESSION) == []
    assert Service().act(1, session=SESSION) == []
    assert named(AsyncSession()) == ()
    asyncio.run(awaited(AsyncSession()))


@pytest.mark.parametrize("returned", [{"a": 1}, "done", [Done(), None], 7, Done])
def test_anything_but_events_is_refused(returned: Any) -> None:
    """A result that holds no events is a mistake, named as one."""

    @publishes
    def use_case(session: Session) -> Any:
        return returned

    with pytest.raises(PublishError, match="event"):
        use_case(SESSION)


def test_mistakes_are_named_where_they_are_made() -> None:
    """Generators, unknown names and a session that cannot be awaited are refused."""

    def generator(session: Session) -> Iterator[Event]:
        yield Done()

    @publishes
    def not_async(session: AsyncSession) -> None:
        pytest.fail("must not run")

    with pytest.raises(TypeError, match="generator"):
        publishes(generator)
    with pytest.raises(TypeError, match="no argument db"):
        publishes(session="db")(generator_free)
    with pytest.raises(TypeError, match="not async"):
        not_async(AsyncSession())


def generator_free(session: Session) -> None:
    """Take a session under another name."""


def test_function_keeps_its_name() -> None:
    """Frameworks that look at the function see the function."""

    @publishes
    def use_case(session: Session) -> None:
        """Do it."""

    assert (use_case.__name__, use_case.__doc__) == ("use_case", "Do it.")
