"""How a ledger claims a table, step by step: of rivals at once none delivers beside another."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from outbox_pipeline.clickhouse.owner import add_claims, new_claim, read_claims
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.operations.owner import find_taking, take_table
from outbox_pipeline.relay import owner as claiming
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.relay.owner import claim_table
from outbox_pipeline.relay.points import Point, listen
from outbox_pipeline.stores import Stores
from tests.fixtures.events import assert_each_exactly_once, committed_ids, delivered_ids, publish
from tests.fixtures.interleave import note_calls
from tests.fixtures.owners import ledger_id_of, owners_of
from tests.fixtures.step_orders import CLAIM_STEPS

pytestmark = pytest.mark.usefixtures("unclaimed")


def test_of_two_at_once_no_two_deliver(stores: Stores, other: Stores) -> None:
    """Both have seen no owner and both have written: one at least is refused, and a repetition succeeds for one."""
    for each in (stores, other):
        publish(each.engine, 3)
    both = threading.Barrier(2, timeout=60)

    def meet(point: Point) -> None:
        if point in (Point.CLAIMING, Point.CLAIMED):
            both.wait()

    end = listen(meet)
    try:
        with ThreadPoolExecutor(2) as threads:
            outcomes = list(threads.map(refusal_of, (stores, other)))
    finally:
        end()
    winners = [ledger_id_of(each) for each, said in zip((stores, other), outcomes, strict=True) if said is None]

    assert owners_of(stores) == winners
    assert len(winners) <= 1
    assert all("at the same moment" in said for said in outcomes if said)
    again = [refusal_of(each) for each in (stores, other)]
    (owner,) = [each for each, said in zip((stores, other), again, strict=True) if said is None]
    assert owners_of(stores) == [ledger_id_of(owner)]
    assert_each_exactly_once(owner.engine, owner.client)


def refusal_of(each: Stores) -> str | None:
    """Relay all there is; return why that was refused, None when it was not."""
    try:
        relay(each, until_empty=True)
    except ConfigurationError as error:
        return str(error)
    return None


def test_the_steps_of_a_claim_are_in_the_order_of_the_model(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read, written, read again, and only then confirmed; the table holds at each point what its name says."""
    steps: list[str] = []
    held: dict[Point, list[bool]] = {}
    for name, before in (("read_claims", "read"), ("add_claims", "write"), ("confirm_claim", "confirm")):
        note_calls(monkeypatch, claiming, name, before=before, steps=steps)

    def look(point: Point) -> None:
        steps.append(point)
        held[point] = [claim.is_confirmed for claim in read_claims(stores.client)]

    end = listen(look)
    claim_table(stores)
    claimed = [claim.is_confirmed for claim in read_claims(stores.client)]
    end()

    read, write, again, confirm, _ = ("read" if step == "look" else step for step in CLAIM_STEPS)
    assert steps == [read, Point.CLAIMING, write, Point.CLAIMED, again, Point.LOOKED_AGAIN, confirm]
    assert held == {Point.CLAIMING: [], Point.CLAIMED: [False], Point.LOOKED_AGAIN: [False]}
    assert claimed == [True]


def test_a_rival_between_claim_and_second_look_is_refused(stores: Stores, other: Stores) -> None:
    """Who sees a claim writes none; the first one goes on."""
    publish(stores.engine, 3)
    refused: list[str] = []

    def rival(point: Point) -> None:
        if point == Point.CLAIMED:
            with pytest.raises(ConfigurationError) as error:
                claim_table(other)
            refused.append(str(error.value))

    end = listen(rival)
    try:
        relay(stores, until_empty=True)
    finally:
        end()

    assert len(refused) == 1
    assert owners_of(stores) == [ledger_id_of(stores)]
    assert_each_exactly_once(stores.engine, stores.client)


def test_no_worker_relies_on_a_claim_that_its_sibling_may_take_back(stores: Stores, other: Stores) -> None:
    """Two workers of one ledger and one of another at the first claim: rows of one ledger alone are in the table."""
    publish(stores.engine, 3)
    publish(other.engine, 2)
    done: list[str] = []

    def sibling(point: Point) -> None:
        # While the first has written its claim and not looked again: a sibling delivers, and the other ledger,
        # which had seen no claim before, writes its own.
        if point == Point.CLAIMED and not done:
            done.append("met")
            relay(stores, until_empty=True)
            add_claims(other.client, [new_claim(other.client, ledger_id_of(other), "the other")])

    end = listen(sibling)
    try:
        with pytest.raises(ConfigurationError, match="at the same moment"):
            claim_table(stores)
    finally:
        end()
    with suppress(ConfigurationError):
        relay(other, until_empty=True)

    in_log = set(delivered_ids(stores.client))
    assert done
    assert not (in_log & committed_ids(stores.engine) and in_log & committed_ids(other.engine))


def test_a_claim_beside_another_one_is_taken_back(stores: Stores, other: Stores) -> None:
    """What stands there afterwards is the other's alone, until it is taken on purpose."""
    outcomes: list[str] = []

    def rival(point: Point) -> None:
        if point == Point.CLAIMED and not outcomes:
            outcomes.append("claimed")
            add_claims(other.client, [new_claim(other.client, ledger_id_of(other), "the other")])

    end = listen(rival)
    try:
        with pytest.raises(ConfigurationError, match="at the same moment"):
            claim_table(stores)
    finally:
        end()
    left = owners_of(stores)
    found = find_taking(stores)
    take_table(stores)

    assert left == [ledger_id_of(other)]
    assert found is not None
    assert [claim.label for claim in found.previous] == ["the other"]
    assert owners_of(stores) == [ledger_id_of(stores)]


def test_two_claims_left_by_a_crash_end_with_a_taking(stores: Stores, other: Stores) -> None:
    """Neither of two ledgers on record delivers until one of them takes the table, as the sentence says."""
    add_claims(stores.client, [new_claim(stores.client, ledger_id_of(each), "left") for each in (stores, other)])
    publish(stores.engine, 3)

    for each in (stores, other):
        with pytest.raises(ConfigurationError, match=r"claimed by this outbox and by another .* --take-table' for"):
            relay(each)
    take_table(stores)
    relay(stores, until_empty=True)

    assert owners_of(stores) == [ledger_id_of(stores)]
    assert_each_exactly_once(stores.engine, stores.client)


def test_claims_of_another_source_are_not_this_one_s(stores: Stores, other: Stores) -> None:
    """Each source has an owner of its own."""
    shop = stores.client.of_source("shop")
    add_claims(shop, [new_claim(shop, ledger_id_of(other), "the shop's")])
    publish(stores.engine, 3)

    relay(stores, until_empty=True)

    assert owners_of(stores) == [ledger_id_of(stores)]
    assert [claim.ledger_id for claim in read_claims(shop)] == [ledger_id_of(other)]
    assert_each_exactly_once(stores.engine, stores.client)
