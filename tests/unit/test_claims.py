"""The rule by which a ledger comes to own a table, walked over every order of its steps: no two ledgers ever send.

A model of `relay.owner`, small enough to be walked whole: two workers of one ledger and one of another, or two of each,
any of which may die between two steps. `integration/test_owner_claims.py` compares its order with that of the real
steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import pytest

from tests.fixtures.step_orders import CLAIM_STEPS

#: What a worker does next; `done` is refused, dead or has sent.
Step = Literal["read", "write", "look", "take back", "confirm", "send", "done"]
Rule = Literal["whole", "trusts any own claim", "looks before it writes", "never looks", "never takes back"]


@dataclass(frozen=True)
class World:
    """Claims by worker, with how often each is written; what each worker does next; which ledgers have sent.

    `is_guarded`: an insert compares the claims with its ledger once more.
    """

    claims: frozenset[tuple[str, int]]
    steps: tuple[tuple[str, Step], ...]
    is_guarded: bool
    senders: frozenset[str] = frozenset()

    def owners(self) -> set[str]:
        """Return the ledgers with a claim; a worker's name begins with its ledger's."""
        return {worker[0] for worker, _ in self.claims}

    def at(self, worker: str, step: Step) -> "World":
        """Return this world with a worker before another step."""
        return replace(self, steps=tuple((name, step if name == worker else old) for name, old in self.steps))


def began(workers: tuple[str, ...], *, is_guarded: bool = True) -> World:
    """Return the table without a claim, and every worker about to read."""
    return World(frozenset(), tuple((worker, "read") for worker in workers), is_guarded)


def following(world: World, rule: Rule, *, may_die: bool) -> Iterator[World]:
    """Yield each world that one worker's next step, or its death, leads to."""
    for worker, step in world.steps:
        if step != "done":
            if may_die:
                yield world.at(worker, "done")
            yield done(world, worker, step, rule)


def done(world: World, worker: str, step: Step, rule: Rule) -> World:
    """Return the world after one step of a worker."""
    ledger, owners = worker[0], world.owners()
    after = world
    match step:
        case "read":
            relies = any(
                name[0] == ledger and (count > 1 or rule == "trusts any own claim") for name, count in world.claims
            )
            if owners - {ledger}:
                return world.at(worker, "done")
            return world.at(worker, "send" if relies else "look" if rule == "looks before it writes" else "write")
        case "write":
            after = replace(world, claims=world.claims | {(worker, 1)})
            return after.at(worker, "confirm" if rule in ("never looks", "looks before it writes") else "look")
        case "look":
            if rule == "looks before it writes":
                return world.at(worker, "done" if owners - {ledger} else "write")
            if owners - {ledger}:
                return world.at(worker, "done" if rule == "never takes back" else "take back")
            return world.at(worker, "confirm")
        case "take back":
            return replace(world, claims=world.claims - {(worker, 1)}).at(worker, "done")
        case "confirm":
            return replace(world, claims=world.claims - {(worker, 1)} | {(worker, 2)}).at(worker, "send")
        case _:
            if world.is_guarded and owners != {ledger}:
                return world.at(worker, "done")
            return replace(world, senders=world.senders | {ledger}).at(worker, "done")


def walk(start: World, rule: Rule = "whole", *, may_die: bool = True) -> set[World]:
    """Return every world that any order of steps and deaths leads to."""
    seen, found = set[World](), [start]
    while found:
        world = found.pop()
        if world not in seen:
            seen.add(world)
            found.extend(following(world, rule, may_die=may_die))
    return seen


@pytest.mark.parametrize("is_guarded", [True, False])
@pytest.mark.parametrize("workers", [("A1", "A2", "B1"), ("A1", "A2", "B1", "B2")])
def test_no_two_ledgers_send(workers: tuple[str, ...], is_guarded: bool) -> None:
    """In whatever order the workers of two ledgers read, write, look again, confirm, send and die.

    What the insert compares is for a table that is taken later: the rule holds without it.
    """
    worlds = walk(began(workers, is_guarded=is_guarded))

    assert {len(world.senders) for world in worlds} == {0, 1}
    assert all(world.senders <= world.owners() for world in worlds)


@pytest.mark.parametrize("rule", ["trusts any own claim", "looks before it writes", "never looks"])
def test_without_the_insert_s_own_comparison_each_of_these_is_needed(rule: Rule) -> None:
    """To confirm, and to look after it has written: with one left out there is an order in which both ledgers send."""
    assert max_senders(rule, is_guarded=False) == 2


@pytest.mark.parametrize(
    ("rule", "count"), [("trusts any own claim", 2), ("looks before it writes", 1), ("never looks", 1)]
)
def test_the_insert_s_own_comparison_makes_up_for_the_look_only(rule: Rule, count: int) -> None:
    """It refuses where two ledgers have a claim, and not what relies on a claim that is then taken back."""
    assert max_senders(rule, is_guarded=True) == count


def max_senders(rule: Rule, *, is_guarded: bool) -> int:
    """Return how many ledgers have sent in the worst order."""
    return max(len(world.senders) for world in walk(began(("A1", "A2", "B1"), is_guarded=is_guarded), rule))


def test_workers_that_all_end_leave_only_confirmed_claims() -> None:
    """So where all were refused, the next one to come finds the table free."""
    ended = ended_worlds("whole")

    assert {frozenset(world.owners()) for world in ended} == {frozenset(), frozenset("A"), frozenset("B")}
    assert {count for world in ended for _, count in world.claims} == {2}


def test_a_claim_that_is_not_taken_back_blocks_the_table() -> None:
    """No two ledgers send then either, but claims of both can stay, and nothing more is sent by any of them."""
    ended = ended_worlds("never takes back")

    assert {len(world.senders) for world in ended} == {0, 1}
    assert any(world.owners() == {"A", "B"} and not world.senders for world in ended)


def ended_worlds(rule: Rule) -> list[World]:
    """Return the worlds in which every worker has gone through its steps and none has died."""
    worlds = walk(began(("A1", "A2", "B1")), rule, may_die=False)
    return [world for world in worlds if all(step == "done" for _, step in world.steps)]


def test_a_worker_that_meets_no_other_goes_through_the_steps_in_order() -> None:
    """Nothing else can happen to it; `integration/test_owner_claims.py` takes the order from here."""
    world, steps = began(("A1",)), list[Step]()
    while world.steps[0][1] != "done":
        steps.append(world.steps[0][1])
        (world,) = following(world, "whole", may_die=False)

    assert tuple(steps) == CLAIM_STEPS
    assert world.senders == {"A"}
