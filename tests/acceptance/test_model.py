"""Whatever happens in whatever order, each committed event arrives once: the pipeline against a small model of it.

By default the same few orders are tried each time. `MODEL_EXAMPLES=500 pytest tests/acceptance/test_model.py` searches
at random, and that many; `make soak` tries a hundred. The twins are broken on purpose, each in one step: the machine
has to find them, or it tells nothing about the code either.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from sqlalchemy import Engine, create_engine

from outbox_pipeline.ids import uuid7
from outbox_pipeline.postgres import cut as ledger
from outbox_pipeline.postgres import gaps
from outbox_pipeline.postgres.conditions import read_conditions
from outbox_pipeline.postgres.engine import ledger_transaction
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.relay.results import Loaded, Marked
from outbox_pipeline.settings import Settings
from outbox_pipeline.stores import Stores
from tests.fixtures.model import OutboxMachine
from tests.fixtures.model_world import World, machine_settings, unreachable

_EXAMPLES = os.environ.get("MODEL_EXAMPLES")


def bounds(examples: int, *, phases: tuple[Phase, ...] = (Phase.generate, Phase.shrink)) -> settings:
    """Return how long to search; without MODEL_EXAMPLES always in the same places."""
    return settings(
        max_examples=int(_EXAMPLES or examples),
        stateful_step_count=30,
        deadline=None,
        derandomize=_EXAMPLES is None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def world(stores: Stores, postgres_url: str) -> Iterator[World]:
    """The stores of a machine, and an engine of its own for producers."""
    producers = create_engine(postgres_url)
    stores = replace(stores, settings=machine_settings(stores.settings))
    with unreachable(stores) as lost:
        yield World(stores, producers, lost)
    producers.dispose()


def machine_in(world: World, **broken: object) -> type[RuleBasedStateMachine]:
    """Return the machine working on *world*, with the steps in *broken* replaced."""
    return type("Machine", (OutboxMachine,), {"world": world, **broken})


def find_in(twin: type[RuleBasedStateMachine]) -> None:
    """Search a twin until something is wrong; without MODEL_EXAMPLES from where that is soon."""
    found = twin if _EXAMPLES else seed(1)(twin)
    run_state_machine_as_test(found, settings=bounds(300, phases=(Phase.generate,)))


def test_no_order_of_events_loses_or_doubles_one(world: World) -> None:
    """Producers, cuts, deliveries, crashes, takeovers, outages and tampering in any order: each event arrives once."""
    run_state_machine_as_test(machine_in(world), settings=bounds(9))


def test_no_order_of_events_loses_one_between_portions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, when each look at the ledger ends after one or two stretches or events."""
    monkeypatch.setattr(ledger, "MAX_UNCLAIMED_STRETCHES", 2)
    monkeypatch.setattr(gaps, "MAX_PROBED_STRETCHES", 1)
    monkeypatch.setattr(gaps, "MAX_MOVED_EVENTS", 2)
    monkeypatch.setattr(gaps, "STRETCHES_A_GAP", 1)

    run_state_machine_as_test(machine_in(world), settings=bounds(5))


def cut_with_early_holders(engine: Engine, settings: Settings, *, limit: int) -> None:
    """Cut like `cut_batches`, but read who may still insert before the sequence."""
    with ledger_transaction(engine) as connection:
        ledger.lock_unclaimed(connection)
        holders = ledger.read_holders(connection)
        gaps.settle_gaps(connection, gaps.gaps_to_settle(connection, holders), holding=holders)
        conditions = read_conditions(connection)
        picked = ledger.pick_events(
            connection,
            conditions.unclaimed,
            max_events=settings.batch_max_events,
            max_bytes=settings.batch_max_bytes,
            first_day=settings.start_date,
        )
        if picked is not None:
            number = conditions.last_cut_number + 1
            ledger.insert_batch(connection, uuid7(), number, picked)
            ledger.take_positions(
                connection,
                picked,
                unclaimed_positions=conditions.unclaimed,
                last_drawn=ledger.read_last_drawn(connection),
                holders=holders,
                cut_number=number,
            )


def cut_and_forget(engine: Engine, settings: Settings, *, limit: int) -> None:
    """Cut, but take every gap for one that nobody can fill any more."""
    with ledger_transaction(engine) as connection:
        ledger.lock_unclaimed(connection)
        gaps.settle_gaps(connection, gaps.gaps_to_settle(connection, []), holding=[])
    cut_batches(engine, settings, limit=limit)


class HastyDelivery(Delivery):
    """Takes a crash for a reason to send a new generation, and puts up no fence."""

    def _raise_fence(self) -> None:
        """Refuse nobody."""

    def load(self, *, reload: bool = False) -> Loaded:
        """Send without looking, under the next generation from the second attempt on."""
        batch = self._frozen_batch()
        generation = self._raise_generation() if self.lease.attempt > 1 else 0
        self._send(batch, generation)
        self._is_shown(batch, generation)
        return self._loaded(batch, generation, 0, sent_bytes=0)


class TrustingDelivery(Delivery):
    """Marks without having seen the rows."""

    def mark(self) -> Marked:
        """Mark on trust."""
        self._is_proven = True
        return super().mark()


class UnboundedDelivery(Delivery):
    """Repairs by deleting all rows of the batch, not only those of older generations."""

    def _send(self, batch: object, generation: int) -> int:
        if generation > 0:
            where = "WHERE batch_id = {batch_id:UUID}"
            parameters = {"batch_id": str(self.lease.batch_id)}
            self.stores.client.run(f"DELETE FROM {{table:Identifier}} {where}", parameters)
        return super()._send(batch, generation)


@pytest.mark.parametrize("cut", [cut_with_early_holders, cut_and_forget])
def test_the_machine_finds_a_cut_that_loses_events(world: World, cut: object) -> None:
    """A cut that reads the holders too early, or forgets a gap too early, does not pass."""
    machine = machine_in(world, cut_with=staticmethod(cut))

    with pytest.raises(AssertionError):
        find_in(machine)


@pytest.mark.parametrize("delivery", [HastyDelivery, TrustingDelivery, UnboundedDelivery])
def test_the_machine_finds_a_delivery_that_loses_or_doubles_events(world: World, delivery: type[Delivery]) -> None:
    """A delivery that skips the fence, the proof, or the bound of its delete does not pass."""
    machine = machine_in(world, delivery_class=delivery)

    with pytest.raises(AssertionError):
        find_in(machine)
