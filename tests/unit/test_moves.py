"""What a run of the tests says of the moves that their batches made."""

import pytest

from outbox_pipeline.batches import MOVES
from tests.fixtures.moves import BEGINNING, Move, faults

ALL = dict.fromkeys([BEGINNING, *MOVES], "a test")


def test_the_moves_of_the_code_are_no_fault() -> None:
    """A run that has made exactly the moves in the table."""
    assert faults(ALL, is_whole=True) == []


@pytest.mark.parametrize("move", [("processed", "cut"), ("split", "delivering"), (None, "processed")], ids=str)
def test_another_move_is_named_with_its_test(move: Move) -> None:
    """In every run, a part of the tests included."""
    (fault,) = faults({move: "test_it"}, is_whole=False)

    assert fault.startswith(f"{move[0] or 'nothing'} → {move[1]} was made in test_it and is not in MOVES")


def test_a_move_that_nothing_made_is_missed_after_a_whole_run() -> None:
    """A part of the tests makes a part of the moves."""
    made = {move: test for move, test in ALL.items() if move != ("cut", "requested")}

    assert faults(made, is_whole=False) == []
    assert faults(made, is_whole=True) == ["cut → requested is in MOVES and no test made it."]
