"""The demo's arithmetic: what it plans, and that its report goes red for each way an event can go astray."""

import json
from collections import Counter
from random import Random
from uuid import UUID

import pytest

from outbox_pipeline.cli.demo import in_another_terminal, show_report
from outbox_pipeline.demo.report import Comparison, Found, Report, compare, latencies, quantile
from outbox_pipeline.demo.visits import COMMITS, MALFORMED_COUNT, OPEN_SECONDS_MAX, Kind, plan_visits
from outbox_pipeline.demo.writers import Journal

GOOD = [UUID(int=number) for number in range(1, 9)]
BAD, DECLINED, STRANGER = UUID(int=100), UUID(int=200), UUID(int=300)


def journal() -> Journal:
    """Eight good events, a malformed one and one that was rolled back."""
    return Journal(committed=dict.fromkeys([*GOOD, BAD], 1.0), malformed={BAD}, rolled_back={DECLINED})


def compared(rows: dict[UUID, int] | None = None, quarantined: dict[UUID, int] | None = None) -> Comparison:
    """Compare the journal with a clean delivery in which these counts are different."""
    return compare(journal(), Found({**dict.fromkeys(GOOD, 1), **(rows or {})}, {**{BAD: 1}, **(quarantined or {})}))


def without(event_id: UUID) -> Found:
    """Return what is found when one event is nowhere."""
    rows = {good: 1 for good in GOOD if good != event_id}
    return Found(rows, {bad: 1 for bad in [BAD] if bad != event_id})


def test_clean_delivery_is_clean() -> None:
    """Good events once in ClickHouse, malformed ones in quarantine, rolled back ones nowhere: nothing to complain."""
    found = compared()

    assert found.is_clean
    assert (found.committed, found.delivered, found.quarantined, found.rolled_back) == (9, 8, 1, 1)
    assert found.suspects == ()


@pytest.mark.parametrize("lost", [GOOD[3], BAD])
def test_missing_event_is_found(lost: UUID) -> None:
    """An event that was committed and is nowhere is missing, and named."""
    found = compare(journal(), without(lost))

    assert (found.missing, found.is_clean, found.suspects) == (1, False, (lost,))


@pytest.mark.parametrize(
    ("rows", "quarantined"), [({GOOD[0]: 2}, {}), ({}, {BAD: 2}), ({GOOD[0]: 1}, {GOOD[0]: 1}), ({BAD: 1}, {})]
)
def test_event_found_twice_is_found(rows: dict[UUID, int], quarantined: dict[UUID, int]) -> None:
    """Two rows, two entries in quarantine, or one of each: the event is doubled."""
    found = compared(rows, quarantined)

    assert (found.duplicated, found.missing, found.is_clean) == (1, 0, False)


@pytest.mark.parametrize(("rows", "quarantined"), [({DECLINED: 1}, {}), ({}, {DECLINED: 1})])
def test_event_of_a_rolled_back_transaction_is_found(rows: dict[UUID, int], quarantined: dict[UUID, int]) -> None:
    """What a rolled-back transaction published must be in neither place."""
    found = compared(rows, quarantined)

    assert (found.rolled_back_delivered, found.is_clean, found.suspects) == (1, False, (DECLINED,))


def test_misjudged_events_are_found() -> None:
    """A malformed event in ClickHouse and a good one in quarantine are both wrong, though neither is missing."""
    rows = dict.fromkeys([*GOOD[1:], BAD], 1)
    found = compare(journal(), Found(rows, {GOOD[0]: 1}))

    assert (found.misjudged, found.missing, found.duplicated, found.is_clean) == (2, 0, 0, False)


def test_the_report_speaks_plainly_to_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    """What the JSON calls misjudged and suspects is said in words; a machine keeps its names."""
    found = compare(journal(), Found({BAD: 1, **dict.fromkeys(GOOD, 1)}, {}))
    report = Report(found, 1.0, None, None, None)
    show_report(report, as_json=False)
    told = dict(line.split("   ", 1) for line in capsys.readouterr().out.splitlines())
    show_report(report, as_json=True)
    plain = json.loads(capsys.readouterr().out)

    lines = {name.strip(): value.strip() for name, value in told.items()}
    assert (lines["wrongly accepted or refused"], lines["events to look at"]) == ("1", str(BAD))
    assert (plain["misjudged"], plain["suspects"]) == (1, [str(BAD)])


def test_another_terminal_is_told_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where OUTBOX_HOME names it, its folder does not."""
    monkeypatch.delenv("OUTBOX_HOME", raising=False)
    assert "in this folder, the life of the first event:  outbox trace 1" in in_another_terminal("outbox trace 1")

    monkeypatch.setenv("OUTBOX_HOME", "/srv/the shop")
    said = in_another_terminal("outbox trace 1")
    assert "in any folder, the life of the first event:  export OUTBOX_HOME='/srv/the shop'; outbox trace 1" in said


def test_other_publishers_events_do_not_count() -> None:
    """Events that are not the shop's change nothing in its report."""
    assert compared({STRANGER: 3}, {UUID(int=301): 1}) == compared()


@pytest.mark.parametrize("event_count", [9, 10, 300, 4999])
def test_plan_commits_exactly_what_was_asked_for(event_count: int) -> None:
    """Every seed gives a plan with exactly so many committed events, the malformed ones included."""
    for seed in range(20):
        kinds = Counter(visit.kind for visit in plan_visits(event_count, Random(seed)))

        assert sum(COMMITS[kind] * number for kind, number in kinds.items()) == event_count
        assert kinds[Kind.MALFORMED] == MALFORMED_COUNT


def test_one_transaction_in_ten_rolls_back_and_all_are_spread_over_the_day() -> None:
    """The plan declines a tenth, in due order, from opening to at most the longest opening hours."""
    visits = plan_visits(2000, Random(1))
    declined = sum(visit.kind is Kind.DECLINED for visit in visits)
    due = [visit.due_seconds for visit in visits]

    assert declined / len(visits) == pytest.approx(0.1, abs=0.005)
    assert due == sorted(due)
    assert (due[0], 0.9 * OPEN_SECONDS_MAX < due[-1] < OPEN_SECONDS_MAX) == (0.0, True)


def test_latency_counts_events_that_were_seen() -> None:
    """From commit to first sight, never negative, shortest first; unseen events are the report's business."""
    committed = {GOOD[0]: 10.0, GOOD[1]: 11.0, GOOD[2]: 12.0, GOOD[3]: 13.0}

    assert latencies(committed, {GOOD[0]: 15.0, GOOD[1]: 12.0, GOOD[2]: 11.9}) == [0.0, 1.0, 5.0]


@pytest.mark.parametrize(("share", "value"), [(0.5, 10), (0.95, 19), (1, 20), (0.01, 1)])
def test_quantile_is_a_measured_value(share: float, value: float) -> None:
    """The value that so large a share of all does not exceed."""
    assert quantile(range(1, 21), share) == value


def test_quantile_of_nothing_is_none() -> None:
    """Nothing seen is no latency of zero."""
    assert quantile([], 0.5) is None
