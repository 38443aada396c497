"""What the doctor says of one thing it looked at, and how a duration reads in the sentences of monitoring."""

from collections.abc import Iterable
from dataclasses import dataclass


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


def duration(seconds: float) -> str:
    """Return a duration for a sentence: in seconds below two minutes, in minutes below two hours, else in hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
