"""What the doctor says of one thing it looked at, and how a duration reads in the sentences of monitoring."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from outbox_pipeline.errors import OutboxError, without_secrets


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `ok` is None when it could not be looked at or is not in use.

    With `is_warning` it is no fault, and still worth a person's look.
    """

    name: str
    ok: bool | None
    message: str
    is_warning: bool = False


def skipped(names: Iterable[str], because: str) -> list[Check]:
    """Return a report for each check that could not be made, as the check *because* failed."""
    return [Check(name, None, f"Skipped: the check '{because}' failed.") for name in names]


def outcome(name: str, make: Callable[[], str]) -> Check:
    """Return the check that *make* says all is well of; what it raises is the problem."""
    try:
        return Check(name, True, make())
    except OutboxError as error:
        return Check(name, False, told(error))


def fine(problem: str | None, otherwise: str) -> str:
    """Return *otherwise*; raises OutboxError with the problem where there is one."""
    if problem is not None:
        raise OutboxError(problem)
    return otherwise


def told(error: OutboxError) -> str:
    """Return an error's words without secrets."""
    return without_secrets(str(error))


def newer_by_one(name: str, what: str, found: str, own: str) -> Check:
    """Warn of *what*, whose version *found* is the one after this code's *own*."""
    message = (
        f"{what} has version {found}, one newer than this code's {own}: this code runs on it; update outbox-pipeline "
        "when you can."
    )
    return Check(name, True, message, is_warning=True)


def duration(seconds: float) -> str:
    """Return a duration for a sentence: in seconds below two minutes, in minutes below two hours, else in hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
