"""A batch's life: the table of moves, and the proof."""

from dataclasses import replace
from itertools import product

import pytest

from outbox_pipeline.batches import MOVES, BatchStatus, Proof, can_move

PROOF = Proof(1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize(("before", "after"), list(product(BatchStatus, repeat=2)))
def test_each_pair_of_statuses_is_a_move_or_is_not(before: BatchStatus, after: BatchStatus) -> None:
    """Only the moves in the table are allowed, and each says why it happens."""
    assert can_move(before, after) == ((before, after) in MOVES)
    assert MOVES.get((before, after), "a reason").strip()


def test_every_batch_can_end_processed() -> None:
    """From each status there is a way to processed, parked included."""
    reached = {BatchStatus.PROCESSED}
    while True:
        more = {before for before, after in MOVES if after in reached} | reached
        if more == reached:
            break
        reached = more

    assert reached == set(BatchStatus)


def test_a_proof_survives_the_ledger() -> None:
    """What the ledger stores reads back as the same proof."""
    assert Proof.from_json(PROOF.to_json()) == PROOF


def test_differences_name_what_and_how_much() -> None:
    """A differing proof says which sums differ, expected against found; an equal one says nothing."""
    assert PROOF.differences(PROOF) == ""
    assert PROOF.differences(replace(PROOF, row_count=9)) == "row_count 9 instead of 1"
