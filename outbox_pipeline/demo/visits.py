"""What will happen in the shop and when, decided before it opens.

Invariant: a plan for N events commits exactly N, malformed ones included; every tenth transaction rolls back besides.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from random import Random

#: Longest the shop is open, and the rate below which it would only bore; in between, longer means lighter load.
OPEN_SECONDS_MAX = 35.0
EVENTS_PER_SECOND_MIN = 30.0

#: One transaction in this many rolls back.
DECLINED_EVERY = 10

MALFORMED_COUNT = 5

#: Between two customers in the evening, after the report.
EVENING_PAUSE_SECONDS = 10.0


class Kind(StrEnum):
    """What one transaction does."""

    SALE = "sale"
    ORDER = "order"
    CANCELLATION = "cancellation"
    DECLINED = "declined"
    MALFORMED = "malformed"


#: Events that each kind commits.
COMMITS = {Kind.SALE: 2, Kind.ORDER: 1, Kind.CANCELLATION: 1, Kind.DECLINED: 0, Kind.MALFORMED: 1}

_USUAL = {Kind.SALE: 70, Kind.ORDER: 18, Kind.CANCELLATION: 12}


@dataclass(frozen=True)
class Visit:
    """One transaction to come: what it does, and how many seconds after opening."""

    kind: Kind
    due_seconds: float


def plan_visits(event_count: int, chance: Random) -> list[Visit]:
    """Return visits that together commit *event_count* events, spread evenly over the opening hours."""
    kinds = list(_kinds(event_count - MALFORMED_COUNT, chance))
    for number in range(MALFORMED_COUNT):
        kinds.insert((number + 1) * len(kinds) // (MALFORMED_COUNT + 1), Kind.MALFORMED)
    pause = open_seconds(event_count) / len(kinds)
    return [Visit(kind, number * pause) for number, kind in enumerate(kinds)]


def plan_evening(chance: Random, *, pause_seconds: float = EVENING_PAUSE_SECONDS) -> Iterator[Visit]:
    """Yield visits without an end, one every *pause_seconds*, none of them malformed."""
    for number in count():
        yield Visit(_usual(COMMITS[Kind.SALE], chance), number * pause_seconds)


def open_seconds(event_count: int) -> float:
    """Return how long the shop is open for so many events."""
    return min(OPEN_SECONDS_MAX, event_count / EVENTS_PER_SECOND_MIN)


def _kinds(remaining: int, chance: Random) -> Iterator[Kind]:
    for number in count(1):
        if remaining <= 0:
            return
        kind = Kind.DECLINED if number % DECLINED_EVERY == 0 else _usual(remaining, chance)
        remaining -= COMMITS[kind]
        yield kind


def _usual(remaining: int, chance: Random) -> Kind:
    if remaining < COMMITS[Kind.SALE]:
        return Kind.ORDER
    return chance.choices(list(_USUAL), list(_USUAL.values()))[0]
