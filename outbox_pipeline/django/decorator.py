"""`@publishes` for Django: a function's work and the events it returns are one `transaction.atomic`.

Invariant: an exception of the function, or an event that is refused, takes back what the function has written.
"""

from collections.abc import Callable
from functools import partial, wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import Any, ParamSpec, TypeVar, overload

from django.db import transaction

from outbox_pipeline.django.connections import alias_of
from outbox_pipeline.django.publish import publish_event, publish_events
from outbox_pipeline.events import Event
from outbox_pipeline.publish.decorator import events_of

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@overload
def publishes(function: Callable[Arguments, Result], /) -> Callable[Arguments, Result]: ...
@overload
def publishes(
    *, using: str | None = None, required: bool = True
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]: ...
def publishes(
    function: Callable[..., Any] | None = None, /, *, using: str | None = None, required: bool = True
) -> Callable[..., Any]:
    """Run a function in `transaction.atomic` and publish the Event, or the list or tuple of Events, that it returns.

    None publishes nothing; the caller gets what the function returned. *using* and *required* as for `publish_event`.

    Raises TypeError for generators, which return no events, and for async functions, where Django has no transaction.
    """
    if function is None:
        return partial(publishes, using=using, required=required)
    if isgeneratorfunction(function) or isasyncgenfunction(function) or iscoroutinefunction(function):
        raise TypeError(
            f"{function.__name__} is a generator or async: @publishes needs a function that Django can run in a "
            "transaction; await it with sync_to_async."
        )

    @wraps(function)
    def publishing(*args: Any, **kwargs: Any) -> Any:
        alias = alias_of(using)
        with transaction.atomic(using=alias):
            result = function(*args, **kwargs)
            _publish(result, alias, required)
        return result

    return publishing


def _publish(result: object, alias: str, required: bool) -> None:
    if isinstance(result, Event):
        publish_event(result, alias, required=required)
    elif result is not None:
        publish_events(events_of(result), alias, required=required)
