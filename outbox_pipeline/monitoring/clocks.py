"""How far the clocks of this host and of the servers are apart."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import combinations

from outbox_pipeline.monitoring.check import Check

#: Clocks further apart than this are worth a look: `recorded_at` decides an event's day, and lag is their difference.
MAX_SKEW = timedelta(seconds=5)


@dataclass(frozen=True)
class ServerClock:
    """How far a server's clock is ahead of this host's, and how exactly that is known."""

    name: str
    ahead: timedelta
    uncertainty: timedelta


def check_clocks(clocks: list[ServerClock]) -> Check:
    """Find the two clocks furthest apart, this host's among them."""
    if not clocks:
        return Check("clocks", None, "Skipped: no server answered.")
    here = ServerClock("this host", timedelta(), timedelta())
    apart = [(abs(one.ahead - other.ahead), one, other) for one, other in combinations([here, *clocks], 2)]
    skew, one, other = max(apart, key=lambda pair: pair[0])
    said = f"{one.name} and {other.name} are {skew.total_seconds():.1f} s apart"
    if skew - one.uncertainty - other.uncertainty > MAX_SKEW:
        return Check("clocks", False, f"The clocks of {said}: let NTP set them, or lag and days will be wrong.")
    return Check("clocks", True, f"The clocks agree; {said}.")


def clock_of(name: str, before: datetime, at: datetime) -> ServerClock:
    """Return the clock of a server that was asked at *before*, by ours, and has answered *at*, by its own."""
    # The server read its clock somewhere between question and answer; take the middle.
    half = (datetime.now(UTC) - before) / 2
    return ServerClock(name, at - before - half, half)
