"""Cutting in portions: however much has accumulated, one look does a bounded part of it, and nothing gets lost between.

The bounds are made tiny here, so that every portion ends in the middle of something.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from outbox_pipeline.postgres import cut as ledger
from outbox_pipeline.postgres import gaps
from outbox_pipeline.relay import cut
from outbox_pipeline.relay.cut import cut_batches
from outbox_pipeline.settings import Settings
from tests.fixtures.costs import event_rows_read
from tests.fixtures.events import publish, publish_in
from tests.fixtures.interleave import at_statement

_PLACES = text(
    "SELECT event.position,"
    " (SELECT count(*) FROM outbox.unclaimed WHERE positions @> event.position)"
    " + (SELECT count(*) FROM outbox.gap WHERE positions @> event.position)"
    " + (SELECT count(*) FROM outbox.batch WHERE positions @> event.position) AS places"
    " FROM outbox.event"
)


@pytest.fixture(autouse=True)
def tiny_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a cut look at four unclaimed stretches, and settle three stretches or five events."""
    monkeypatch.setattr(ledger, "MAX_UNCLAIMED_STRETCHES", 4)
    monkeypatch.setattr(gaps, "MAX_PROBED_STRETCHES", 3)
    monkeypatch.setattr(gaps, "MAX_MOVED_EVENTS", 5)
    monkeypatch.setattr(gaps, "STRETCHES_A_GAP", 2)
    monkeypatch.setattr(cut, "_MIN_SCAN_EVENTS", 10)


@pytest.fixture
def other_engine(postgres_url: str) -> Iterator[Engine]:
    """A second engine on the same database, whose statements are not counted."""
    engine = create_engine(postgres_url)
    yield engine
    engine.dispose()


def look(engine: Engine) -> int:
    """Cut one batch at most, with a single look where that cuts nothing; return its events."""
    count = cut_batches(engine, Settings(), limit=1, stop_when_idle=True).event_count
    assert_none_in_two_places(engine)
    return count


def assert_none_in_two_places(engine: Engine) -> None:
    """Check that each committed event is unclaimed, in a gap or in a batch, but in one of them only."""
    with engine.begin() as connection:
        places = {row.position: row.places for row in connection.execute(_PLACES)}
    assert set(places.values()) <= {0, 1}, places


def ledger_sets(engine: Engine) -> tuple[str, list[str]]:
    """Return the unclaimed set and the positions of all gaps as text."""
    with engine.begin() as connection:
        unclaimed = connection.scalar(text("SELECT positions::text FROM outbox.unclaimed"))
        return str(unclaimed), list(connection.execute(text("SELECT positions::text FROM outbox.gap")).scalars())


def in_batches(engine: Engine) -> int:
    """Return how many events are in batches."""
    with engine.begin() as connection:
        return connection.scalar(text("SELECT coalesce(sum(event_count), 0) FROM outbox.batch")) or 0


def interleave(slow: Connection, engine: Engine, count: int) -> None:
    """Let a slow transaction draw every second of twice as many positions."""
    for _ in range(count):
        publish_in(slow)
        publish(engine)


def unclaim(engine: Engine, positions: str) -> None:
    """Set the unclaimed positions by hand."""
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE outbox.unclaimed SET positions = CAST(:positions AS int8multirange)"), {"positions": positions}
        )


def test_what_was_passed_over_is_kept_in_small_rows(outbox_engine: Engine) -> None:
    """A cut that passes over many stretches writes rows of a few, so that settling some rewrites no others."""
    with outbox_engine.connect() as slow:
        interleave(slow, outbox_engine, 5)
        look(outbox_engine)

        assert ledger_sets(outbox_engine) == ("{[11,)}", ["{[1,2),[3,4)}", "{[5,6),[7,8)}", "{[9,10)}"])


def test_late_events_are_settled_a_portion_at_a_time(outbox_engine: Engine) -> None:
    """When a transaction with many scattered events commits, each look takes a few of them, and all are cut once."""
    with outbox_engine.connect() as slow:
        interleave(slow, outbox_engine, 8)
        look(outbox_engine)
        slow.commit()

    counts = [look(outbox_engine) for _ in range(4)]

    assert counts == [3, 3, 2, 0]
    assert ledger_sets(outbox_engine) == ("{[17,)}", [])


def test_rolled_back_positions_are_forgotten_a_portion_at_a_time(outbox_engine: Engine) -> None:
    """Scattered positions of a transaction that rolled back go in portions; one call without haste does all of them."""
    with outbox_engine.connect() as slow:
        interleave(slow, outbox_engine, 8)
        look(outbox_engine)
        slow.rollback()
    sizes = []
    for _ in range(2):
        look(outbox_engine)
        sizes.append(sum(row.count("[") for row in ledger_sets(outbox_engine)[1]))

    cut_batches(outbox_engine, Settings(), limit=1)

    assert sizes == [5, 2]
    assert ledger_sets(outbox_engine) == ("{[17,)}", [])


def test_a_call_without_haste_finds_what_is_behind_empty_portions(outbox_engine: Engine) -> None:
    """Late events behind many positions that were rolled back are cut by the same call."""
    with outbox_engine.connect() as rolled_back, outbox_engine.connect() as slow:
        interleave(rolled_back, outbox_engine, 8)
        interleave(slow, outbox_engine, 2)
        look(outbox_engine)
        rolled_back.rollback()
        slow.commit()

    assert cut_batches(outbox_engine, Settings(), limit=1).event_count > 0
    cut_batches(outbox_engine, Settings(), limit=9)
    assert in_batches(outbox_engine) == 12


def test_a_bulk_that_commits_late_is_taken_in_portions(outbox_engine: Engine) -> None:
    """One stretch of many events is not read whole, and what was not read is not forgotten."""
    with outbox_engine.connect() as slow:
        publish_in(slow, 12)
        publish(outbox_engine)
        look(outbox_engine)
        slow.commit()

    counts = [look(outbox_engine) for _ in range(4)]

    assert counts == [5, 5, 2, 0]
    assert ledger_sets(outbox_engine) == ("{[14,)}", [])


def test_gaps_without_holders_survive_a_portion_that_found_enough(outbox_engine: Engine) -> None:
    """A gap that nobody holds (adopted) is forgotten only once it was looked at to its end."""
    publish(outbox_engine, 12)
    unclaim(outbox_engine, "{[13,)}")
    with outbox_engine.begin() as connection:
        connection.execute(text("INSERT INTO outbox.gap (positions, holders) VALUES ('{[1,4),[5,8),[9,13)}', '{}')"))

    assert cut_batches(outbox_engine, Settings(), limit=9).event_count == 10
    assert ledger_sets(outbox_engine) == ("{[13,)}", [])


def test_others_in_a_gap_keep_it_while_portions_are_settled(outbox_engine: Engine) -> None:
    """What one transaction leaves behind is settled in portions, while another in the same gaps stays open."""
    with outbox_engine.connect() as slow, outbox_engine.connect() as slower:
        for _ in range(5):
            publish_in(slow)
            publish_in(slower)
            publish(outbox_engine)
        look(outbox_engine)
        slow.commit()
        counts = [look(outbox_engine) for _ in range(4)]
        kept = [row for row in ledger_sets(outbox_engine)[1] if row != "empty"]
        slower.commit()
    cut_batches(outbox_engine, Settings(), limit=9)

    assert sum(counts) == 5
    assert sum(row.count("[") for row in kept) == 5
    assert in_batches(outbox_engine) == 15
    assert ledger_sets(outbox_engine) == ("{[16,)}", [])


def test_many_unclaimed_stretches_are_looked_at_in_portions(outbox_engine: Engine) -> None:
    """Of a fragmented unclaimed set a cut takes the first stretches and the newest events; the others follow."""
    publish(outbox_engine, 20)
    unclaim(outbox_engine, "{[1,2),[3,4),[5,6),[7,8),[9,10),[11,12),[13,14),[15,16),[18,)}")

    first = look(outbox_engine)
    unclaimed = ledger_sets(outbox_engine)[0]
    counts = [look(outbox_engine) for _ in range(3)]

    assert first == 7, "four stretches and the three newest events"
    assert unclaimed == "{[21,)}"
    assert counts == [3, 1, 0]
    assert ledger_sets(outbox_engine) == ("{[21,)}", [])


def test_many_unclaimed_stretches_without_events_become_gaps(outbox_engine: Engine) -> None:
    """Where nothing is visible in any stretch they are looked at once, and forgotten when nobody can fill them."""
    with outbox_engine.connect() as gone:
        publish_in(gone, 20)
        gone.rollback()
    unclaim(outbox_engine, "{[1,2),[3,4),[5,6),[7,8),[9,10),[11,12),[13,14),[15,)}")

    counts = [look(outbox_engine) for _ in range(4)]

    assert counts == [0, 0, 0, 0]
    assert ledger_sets(outbox_engine) == ("{[21,)}", [])


def test_stretches_set_aside_wait_for_who_may_fill_them(outbox_engine: Engine) -> None:
    """Positions that are set aside without a look are not forgotten while their transaction is open."""
    with outbox_engine.connect() as slow:
        publish_in(slow, 20)
        unclaim(outbox_engine, "{[1,2),[3,4),[5,6),[7,8),[9,10),[11,12),[13,14),[15,)}")
        for _ in range(4):
            look(outbox_engine)
        slow.commit()
    cut_batches(outbox_engine, Settings(), limit=9)

    assert in_batches(outbox_engine) == 13
    assert ledger_sets(outbox_engine) == ("{[21,)}", [])


def test_stretches_set_aside_wait_for_nobody_else(outbox_engine: Engine) -> None:
    """Events that are set aside without a look are cut while a transaction that has published stays open."""
    publish(outbox_engine, 20)
    with outbox_engine.connect() as open_for_long:
        publish_in(open_for_long)
        unclaim(outbox_engine, "{[1,2),[3,4),[5,6),[7,8),[9,10),[11,12),[13,14),[15,16),[18,)}")

        counts = [look(outbox_engine) for _ in range(3)]

    assert sum(counts) == 11


def test_positions_the_sequence_has_not_drawn_are_not_set_aside(outbox_engine: Engine) -> None:
    """Of many stretches those that are still to be drawn stay unclaimed."""
    publish(outbox_engine, 12)
    unclaim(outbox_engine, "{[1,2),[3,4),[5,6),[7,8),[9,10),[11,14),[15,16),[17,)}")

    cut_batches(outbox_engine, Settings(), limit=9)

    assert ledger_sets(outbox_engine) == ("{[13,14),[15,16),[17,)}", [])
    assert in_batches(outbox_engine) == 7


@pytest.mark.parametrize("number", range(14))
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_whoever_ends_while_portions_are_settled_loses_nothing(
    outbox_engine: Engine, other_engine: Engine, number: int, ends: str
) -> None:
    """The second of two transactions ends between two statements of a cut that settles a portion of both's gaps."""
    with other_engine.connect() as slow, other_engine.connect() as slower:
        for _ in range(5):
            publish_in(slow)
            publish_in(slower)
            publish(other_engine)
        look(outbox_engine)
        slow.commit()

        with at_statement(outbox_engine, number, getattr(slower, ends)):
            cut_batches(outbox_engine, Settings(), limit=1, stop_when_idle=True)
        getattr(slower, ends)()
    for _ in range(3):
        cut_batches(outbox_engine, Settings(), limit=9)

    assert_none_in_two_places(outbox_engine)
    assert in_batches(outbox_engine) == (15 if ends == "commit" else 10)
    assert ledger_sets(outbox_engine) == ("{[16,)}", [])


def test_of_large_events_no_more_are_looked_at_than_fit_into_a_batch(outbox_engine: Engine) -> None:
    """Once a batch was full by its bytes, the next look reads those it picks, and each once."""
    context = f'{{"text": "{"x" * 88}"}}'
    publish(outbox_engine, 4_000, context=context)
    with outbox_engine.begin() as connection:
        connection.execute(text("ANALYZE outbox.event"))
    settings = Settings(batch_max_bytes=2_000)
    cut_batches(outbox_engine, settings, limit=1)
    before = event_rows_read(outbox_engine)

    result = cut_batches(outbox_engine, settings, limit=1)

    # 20 would fit, and all that are looked at are taken.
    assert (result.event_count, result.batches[0].is_last) == (19, False)
    assert event_rows_read(outbox_engine) - before == 19


def test_events_that_became_smaller_are_all_taken(outbox_engine: Engine) -> None:
    """A look bounded by the size of the last batch's events has not seen everything, so the call goes on."""
    publish(outbox_engine, context=f'{{"text": "{"x" * 988}"}}')
    cut_batches(outbox_engine, Settings(batch_max_bytes=1_000), limit=1)
    publish(outbox_engine, 50)

    result = cut_batches(outbox_engine, Settings(batch_max_bytes=1_000, linger_seconds=3600), limit=9)

    assert [batch.event_count for batch in result.batches] == [10]
    assert result.lingering_count == 40
