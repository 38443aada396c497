"""`@publishes`: the events a use case returns are published in the transaction it worked in.

Invariant: an exception of the function publishes nothing, and whether the call has a session to publish through is
known before the function does anything.
"""

from collections.abc import Awaitable, Callable
from functools import wraps
from inspect import Signature, isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from typing import Any, ParamSpec, TypeVar, cast, overload

from outbox_pipeline.errors import PublishError
from outbox_pipeline.events import Event
from outbox_pipeline.publish.calls import publish_event, publish_events
from outbox_pipeline.publish.calls_async import publish_event_async, publish_events_async
from outbox_pipeline.publish.kinds import is_async_session, is_sync_session

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@overload
def publishes(function: Callable[Arguments, Result], /) -> Callable[Arguments, Result]: ...
@overload
def publishes(
    *, session: str | None = None, required: bool = True
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]: ...
def publishes(
    function: Callable[..., Any] | None = None, /, *, session: str | None = None, required: bool = True
) -> Callable[..., Any]:
    """Publish the Event, or the list or tuple of Events, that a function returns; None publishes nothing.

    It is published through the argument called *session*, or the first argument that is a session; the function
    still returns what it returned. With `required=False` as `publish_event` does it.

    Raises TypeError before the function runs when there is no session among its arguments.
    """
    if function is None:
        return lambda decorated: _decorated(decorated, session, required)
    return _decorated(function, session, required)


def _decorated(function: Callable[..., Any], session_name: str | None, required: bool) -> Callable[..., Any]:
    if isgeneratorfunction(function) or isasyncgenfunction(function):
        raise TypeError(f"{function.__name__} is a generator: @publishes needs a function that returns its events.")
    parameters = signature(function)
    if session_name is not None and session_name not in parameters.parameters:
        raise TypeError(f"{function.__name__} has no argument {session_name}.")
    if iscoroutinefunction(function):
        return _awaited(function, _Finder(function.__name__, parameters, session_name), required)
    return _called(function, _Finder(function.__name__, parameters, session_name), required)


def _called(function: Callable[..., Any], finder: "_Finder", required: bool) -> Callable[..., Any]:
    @wraps(function)
    def publishing(*args: Any, **kwargs: Any) -> Any:
        session = finder.find(args, kwargs)
        if is_async_session(session):
            raise TypeError(f"{finder.function_name} is not async, so @publishes cannot await its session.")
        result = function(*args, **kwargs)
        _publish(session, result, required)
        return result

    return publishing


def _awaited(function: Callable[..., Awaitable[Any]], finder: "_Finder", required: bool) -> Callable[..., Any]:
    @wraps(function)
    async def publishing(*args: Any, **kwargs: Any) -> Any:
        session = finder.find(args, kwargs)
        result = await function(*args, **kwargs)
        if is_async_session(session):
            await _publish_async(session, result, required)
        else:
            _publish(session, result, required)
        return result

    return publishing


class _Finder:
    """Finds the session among the arguments of a call."""

    def __init__(self, function_name: str, parameters: Signature, session_name: str | None) -> None:
        self.function_name = function_name
        self._parameters = parameters
        self._session_name = session_name

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the session. Raises TypeError when there is none."""
        bound = self._parameters.bind(*args, **kwargs)
        bound.apply_defaults()
        candidates = [*args, *kwargs.values()]
        if self._session_name is not None:
            candidates = [bound.arguments[self._session_name]]
        for candidate in candidates:
            if is_sync_session(candidate) or is_async_session(candidate):
                return candidate
        raise TypeError(f"{self.function_name} was called without a session that @publishes could publish through.")


def _publish(session: Any, result: object, required: bool) -> None:
    if isinstance(result, Event):
        publish_event(session, result, required=required)
    elif result is not None:
        publish_events(session, events_of(result), required=required)


async def _publish_async(session: Any, result: object, required: bool) -> None:
    if isinstance(result, Event):
        await publish_event_async(session, result, required=required)
    elif result is not None:
        await publish_events_async(session, events_of(result), required=required)


def events_of(result: object) -> list[Event]:
    """Return the Events among which nothing else is. Raises PublishError for anything but a list or tuple of them."""
    if not isinstance(result, list | tuple) or not all(isinstance(event, Event) for event in result):
        raise PublishError("event", f"must be what @publishes finds returned: Events, not {type(result).__name__}")
    return cast("list[Event]", list(result))
