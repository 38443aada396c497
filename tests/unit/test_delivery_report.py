"""The Markdown summary of a run: what it says, and that no event can write into it."""

from dataclasses import replace
from datetime import UTC, date, datetime
from uuid import UUID

from outbox_pipeline.batches import Batch, BatchStatus, Proof
from outbox_pipeline.operations.replay import Outcome, Replayed
from outbox_pipeline.orchestration.delivery.report import of_load, summary_of_batch, summary_of_day
from outbox_pipeline.relay.results import Loaded, Marked

AT = datetime(2026, 11, 22, 12, tzinfo=UTC)
BATCH = Batch(
    batch_id=UUID(int=7),
    recorded_on=date(2026, 11, 22),
    event_count=3,
    context_bytes=1200,
    first_position=5,
    last_position=9,
    oldest_recorded_at=AT,
    status=BatchStatus.DELIVERING,
    attempt=2,
    failures=1,
    transient_failures=0,
    generation=1,
    rejected={9: ["context_too_large", "event_type_unknown: x"]},
    proof=None,
    accepted_count=None,
    rejected_count=None,
    last_error=None,
    run_id=None,
    processed_at=None,
    proved_at=None,
    pruned_at=None,
    foreign_positions=(),
)
MARKED = Marked(2, 1, AT, 1200, 3.25, 0.5)


def test_a_batch_is_told_in_a_few_lines() -> None:
    """Counts, types, reasons, lag, attempt and generation are there, with links to its runs and its day."""
    said = summary_of_batch(BATCH, MARKED, {"order_placed": 2}).value

    assert said is not None
    assert "**2 events delivered and proved**, 1 refused." in said
    assert "`context_too_large` 1, `event_type_unknown` 1" in said
    assert "waited 3.2 s" in said
    assert "attempt 2, generation 1" in said
    assert f"/runs?q%5B%5D=tag%3Aoutbox%2Fbatch_id%3D{BATCH.batch_id}" in said
    assert "partition=2026-11-22" in said
    assert f"outbox quarantine list --batch {BATCH.batch_id}" in said


def test_an_event_type_cannot_leave_its_cell() -> None:
    """Whatever a type is called, it adds no cell, no line, no link and no image."""
    said = summary_of_batch(BATCH, MARKED, {"a|b`\n![x](http://evil)<script>": 2, "n" * 500: 1}).value or ""

    (types,) = [line for line in said.splitlines() if line.startswith("| types")]
    assert types.count("|") == 3
    assert "![" not in said
    assert "<script>" not in said
    assert "n" * 61 not in said


def test_only_some_types_are_named() -> None:
    """With many types the first ones are named and the others counted."""
    said = summary_of_batch(BATCH, MARKED, {f"type_{number}": 1 for number in range(8)}).value or ""

    assert "`type_4` 1, 3 more" in said
    assert "see the step validate_batch" in (summary_of_batch(BATCH, MARKED, None).value or "")


def test_the_sums_of_a_proof_are_shown_as_text() -> None:
    """A browser reads numbers beyond 2**53 inexactly; the sums of columns are there with their names."""
    sums = dict.fromkeys(Proof.of_nothing().columns, 2**64 - 1)
    proof = replace(Proof.of_nothing(), id_sum=2**63 + 1, columns=sums)

    shown = of_load(Loaded(0, 0, 0, was_there=False, seconds=0.1, proof=proof))["proof"].value

    assert (shown["version"], shown["id_sum"]) == ("2", "9223372036854775809")
    assert shown["columns"] == dict.fromkeys(sums, "18446744073709551615")


def test_a_day_is_told_in_one_line() -> None:
    """A run for a day says how many batches are proven and what became of the others."""
    replayed = [Replayed(UUID(int=number), Outcome.PROVEN, 10, "") for number in range(3)]
    replayed.append(Replayed(UUID(int=9), Outcome.FAILED, 0, "why"))

    assert summary_of_day(replayed).value == f"**4 batches with 30 rows**: 3 {Outcome.PROVEN}, 1 {Outcome.FAILED}."
    assert "no batches" in (summary_of_day([]).value or "")
