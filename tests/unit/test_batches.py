"""A batch's life: the table of moves, and the proof."""

import json
from dataclasses import replace
from uuid import UUID

import pytest

from outbox_pipeline.batches import MOVES, BatchStatus, Proof
from outbox_pipeline.clickhouse.proof import proof_of_table
from outbox_pipeline.errors import ConfigurationError
from tests.fixtures.proofs import Odd, table_of

PROOF = Proof(1, 2, 3, 4, 5, 6, 7)
NEWEST = replace(Proof.of_nothing(), row_count=1, id_sum=2)

#: Two events with odd values, and what they add up to for ever: ledgers hold such sums.
EVENTS = (
    Odd(UUID(int=1), 1),
    Odd(
        *(UUID("01234567-89ab-7cde-8f01-23456789abcd"), 2**62, "é🎉", -1, ""),
        *("", 2**63 - 1, 1_700_000_000_000_001, "00-ab-cd-01"),
    ),
)
SUMS_OF_VERSION_1 = {
    "row_count": 2,
    "id_sum": 554352721794339861,
    "id_xor_high": 81985529216466142,
    "id_xor_low": 10304556203397196748,
    "position_sum": 4611686018427387905,
    "time_sum": 18446744073709551615,
    "context_sum": 2745614147,
}
COLUMNS_OF_VERSION_2 = {
    "event_type": 1114217578638356203,
    "event_date_time": 15739855694864267673,
    "environment": 18053298444969555334,
    "event_context": 4231335466827015629,
    "metadata_version": 4363948000958547784,
    "position": 11682522398231219631,
    "recorded_at": 329587224609850983,
    "trace_context": 4203834420484724002,
}


def test_every_batch_can_end_processed() -> None:
    """From each status there is a way to processed, parked included; a batch that is split has no event any more."""
    reached = {BatchStatus.PROCESSED}
    while True:
        more = {before for before, after in MOVES if after in reached} | reached
        if more == reached:
            break
        reached = more

    assert reached == set(BatchStatus) - {BatchStatus.SPLIT}
    assert not any(before == BatchStatus.SPLIT for before, _ in MOVES)


@pytest.mark.parametrize("proof", [PROOF, NEWEST])
def test_a_proof_survives_the_ledger(proof: Proof) -> None:
    """What the ledger stores reads back as the same proof, in its version."""
    assert Proof.from_json(json.loads(json.dumps(proof.to_json()))) == proof


def test_what_events_add_up_to_never_changes() -> None:
    """The sums of each version are those that ledgers hold; the first was stored without a version."""
    proof = proof_of_table(table_of(EVENTS))

    assert proof.to_json() == {"version": 2, **SUMS_OF_VERSION_1, "columns": COLUMNS_OF_VERSION_2}
    assert proof.as_of(1).to_json() == SUMS_OF_VERSION_1
    assert Proof.from_json(SUMS_OF_VERSION_1) == proof.as_of(1)


def test_differences_name_what_and_how_much() -> None:
    """A differing proof says which sums differ, expected against found; an equal one says nothing."""
    assert PROOF.differences(PROOF) == ""
    assert PROOF.differences(replace(PROOF, row_count=9)) == "row_count 9 instead of 1"


def test_differences_name_columns_where_the_rows_are_there() -> None:
    """An altered column is named; with a row missing each column differs, so none is."""
    altered = replace(NEWEST, columns={**NEWEST.columns, "event_type": 1, "trace_context": 1})

    assert NEWEST.differences(altered) == "event_type altered, trace_context altered"
    assert NEWEST.differences(replace(altered, id_sum=9)) == "id_sum 9 instead of 2"


def test_a_batch_of_version_1_is_compared_by_its_sums_alone() -> None:
    """What a later version knows of the rows is no difference for a proof of before."""
    found = replace(NEWEST.plus(Proof.of_nothing()), columns=dict.fromkeys(NEWEST.columns, 5))

    assert NEWEST.as_of(1).differences(found) == ""
    assert NEWEST.as_of(1).plus(found) == found.plus(NEWEST.as_of(1))


def test_a_newer_proof_is_read_and_never_compared() -> None:
    """The ledger's row can be shown; who compares by it is told what to do."""
    stored = {**NEWEST.to_json(), "version": 3, "new_sum": 1}

    newer = Proof.from_json(stored)

    assert (newer.version, newer.row_count) == (3, 1)
    with pytest.raises(ConfigurationError, match="update outbox-pipeline here"):
        newer.differences(NEWEST)
