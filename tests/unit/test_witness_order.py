"""Why the witness's steps stand in their order: every interleaving of two deliveries, in the right order and in others.

The model's order is compared with that of a real delivery in `integration/test_witness.py`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import pytest

from tests.fixtures.step_orders import WITNESS_STEPS


@dataclass
class Ledger:
    """A PostgreSQL: which batch has which number, and which of them are not sent yet."""

    numbers: dict[int, str] = field(default_factory=dict)
    waiting: frozenset[int] = frozenset()


@dataclass
class Delivery:
    """One batch on its way, in its ledger; `seen` is what ClickHouse showed, `known` what PostgreSQL said."""

    name: str
    ledger: Ledger
    number: int = 0
    seen: set[tuple[int, str]] = field(default_factory=set)
    known: dict[int, str] = field(default_factory=dict)
    is_stopped: bool = False
    has_sent: bool = False

    def step(self, what: str, witness: set[tuple[int, str]]) -> None:
        """Do one step; nothing more once it is stopped."""
        if self.is_stopped:
            return
        if what == "commit":
            self.number = max(self.ledger.numbers, default=0) + 1
            self.ledger.numbers[self.number] = self.name
        elif what == "write":
            witness.add((self.number, self.name))
        elif what == "read ClickHouse":
            self.seen = {row for row in witness if row[0] >= self.number or row[0] in self.ledger.waiting}
        elif what == "read PostgreSQL":
            self.known = dict(self.ledger.numbers)
        else:
            self.has_sent = True

    def judge(self) -> None:
        """Compare what was read, once both sides were."""
        self.is_stopped = any(self.known.get(number) != name for number, name in self.seen)


def interleavings() -> Iterator[tuple[int, ...]]:
    """Yield each order in which the steps of two deliveries can follow each other: whose turn it is."""
    length = 2 * len(WITNESS_STEPS)
    for first in combinations(range(length), len(WITNESS_STEPS)):
        yield tuple(0 if turn in first else 1 for turn in range(length))


def walk(order: Sequence[str], deliveries: Callable[[], tuple[Delivery, Delivery]]) -> Counter[str]:
    """Return in how many interleavings a delivery was stopped, and in how many both have sent."""
    found: Counter[str] = Counter()
    for turns in interleavings():
        both, witness, done = deliveries(), set[tuple[int, str]](), [0, 0]
        for turn in turns:
            step = order[done[turn]]
            both[turn].step(step, witness)
            done[turn] += 1
            if done[turn] == 1 + max(order.index("read ClickHouse"), order.index("read PostgreSQL")):
                both[turn].judge()
        found["walked"] += 1
        found["stopped"] += any(each.is_stopped for each in both)
        found["both sent"] += all(each.has_sent for each in both)
    return found


def of_one_ledger() -> tuple[Delivery, Delivery]:
    """Two batches of one ledger."""
    ledger = Ledger()
    return Delivery("a", ledger), Delivery("b", ledger)


def of_two_instances() -> tuple[Delivery, Delivery]:
    """The same events, cut by two instances of a ledger that were one until number 7."""
    return Delivery("a", Ledger({7: "shared"})), Delivery("b", Ledger({7: "shared"}))


def test_deliveries_of_one_ledger_never_stop_each_other() -> None:
    """In each of the 252 interleavings both are sent."""
    assert walk(WITNESS_STEPS, of_one_ledger) == {"walked": 252, "stopped": 0, "both sent": 252}


def test_two_instances_never_both_send() -> None:
    """In each of the 252 interleavings at least one of them has seen the other and is stopped."""
    assert walk(WITNESS_STEPS, of_two_instances) == {"walked": 252, "stopped": 252, "both sent": 0}


def of_two_instances_that_cut_differently(waiting: frozenset[int]) -> tuple[Delivery, Delivery]:
    """Events that one has cut into 8 and 9, of which 9 is under way, and the other into 8 alone."""
    return Delivery("a", Ledger({7: "shared", 8: "before a"}, waiting)), Delivery("b", Ledger({7: "shared"}))


def test_of_two_instances_that_cut_differently_no_two_send() -> None:
    """A batch behind one that is not sent yet looks under that one's number as well."""
    found = walk(WITNESS_STEPS, lambda: of_two_instances_that_cut_differently(frozenset({8})))

    assert found == {"walked": 252, "stopped": 252, "both sent": 0}


def test_a_look_from_the_own_number_on_would_let_both_send() -> None:
    """The other instance's batch has a lower one."""
    assert walk(WITNESS_STEPS, lambda: of_two_instances_that_cut_differently(frozenset()))["both sent"] == 66


def test_postgres_read_first_would_stop_deliveries_of_one_ledger() -> None:
    """What another one commits and writes between the two readings looks like an instance that is not known."""
    order = ("commit", "write", "read PostgreSQL", "read ClickHouse", "send")

    assert walk(order, of_one_ledger) == {"walked": 252, "stopped": 20, "both sent": 232}


@pytest.mark.parametrize(
    ("order", "both_sent"),
    [
        (("commit", "read ClickHouse", "read PostgreSQL", "write", "send"), 200),
        (("commit", "read ClickHouse", "read PostgreSQL", "send", "write"), 240),
        (("commit", "send", "write", "read ClickHouse", "read PostgreSQL"), 252),
    ],
)
def test_another_order_would_let_two_instances_send(order: Sequence[str], both_sent: int) -> None:
    """Read before it is written, or sent before both, the witness comes too late in most interleavings."""
    assert walk(order, of_two_instances)["both sent"] == both_sent
